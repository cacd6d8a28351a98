"""The commands `mexma export`, `build`, `parity` and `standin`."""
