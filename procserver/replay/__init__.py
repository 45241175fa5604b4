"""Saved requests sent again, and their answers compared."""
