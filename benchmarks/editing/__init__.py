"""Editing, loops, tempo and long form, measured; see `benchmarks.editing.__main__`."""
