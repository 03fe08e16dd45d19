"""How well music follows what is asked beside the text, measured; see `benchmarks.control.__main__`."""
