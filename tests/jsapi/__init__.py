"""Conformance with the WebAssembly JavaScript API, one file for each interface or area."""
