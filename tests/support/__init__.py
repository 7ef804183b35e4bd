"""Functions that several test modules use; test modules do not import each other."""
