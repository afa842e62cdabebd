"""The interfaces of the JS API, one a file."""
