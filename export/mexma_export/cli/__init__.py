"""The commands `mexma export`, `mexma parity` and `mexma standin`."""
