"""Subcommands of `cerberus`, one module each: `add` registers the arguments, `run` executes the command."""
