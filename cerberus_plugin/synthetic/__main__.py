"""`python -m cerberus_plugin.synthetic`: create a synthetic dataset."""

from ..utils.commands import run_command
from .dataset import main

if __name__ == "__main__":
    run_command(main)
