"""`python -m cerberus_plugin.experiments.page DIR`."""

from .writing import main

main()
