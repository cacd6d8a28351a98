"""Sentences to calibrate with and to judge by."""
