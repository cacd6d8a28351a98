"""Engines on the host's processor."""
