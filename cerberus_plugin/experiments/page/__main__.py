"""Command `python -m cerberus_plugin.experiments.page FOLDER`."""

from ...utils.commands import run_command
from .writing import main

run_command(main)
