"""Programs of their own that look at one question each."""
