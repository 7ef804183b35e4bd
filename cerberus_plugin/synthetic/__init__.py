"""Drawn people: data sets in the published forms, for demos and tests. `python -m cerberus_plugin.synthetic --help`."""
