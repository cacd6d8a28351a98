"""Adapters to other libraries, one screen a library. They use the encoder as it is, and nothing here is imported by it."""
