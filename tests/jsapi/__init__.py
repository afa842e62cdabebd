"""
Conformance with the WebAssembly JavaScript API, one file for each interface or area.

The claims are those of the API's own suite and of its text, in Python terms. Docstrings name
the rule that a test checks by its id in the project's inventory of the API (two letters and a
number, or a section); "Contract" is what the project promises beyond the API, or in its place.
"""
