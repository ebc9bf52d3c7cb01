"""Functions that do in Python what the commands do: `aj.load_config`, `aj.train`, `aj.evaluate` and `aj.export`."""
