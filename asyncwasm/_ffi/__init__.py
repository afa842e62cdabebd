"""The only place that knows ctypes and wasmtime."""
