"""int8 and fp8: what the products of an engine are turned into, and how that is chosen."""
