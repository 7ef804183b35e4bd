"""Commands of `cerberus`, a module each: `add` its options to the parser, `run` it."""
