"""Adapters to other libraries, one screen a library. They use the encoder as it is; it imports none of them."""
