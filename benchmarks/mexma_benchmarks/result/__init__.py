"""What was measured, raw, and what can be said of it."""
