"""Engines, stores, and work in them that can be polled. Knows no event loop."""
