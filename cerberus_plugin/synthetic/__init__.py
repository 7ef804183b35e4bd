"""Synthetic datasets in the forms of published datasets, see `python -m cerberus_plugin.synthetic --help`."""
