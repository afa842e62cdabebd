"""The only layer that awaits."""
