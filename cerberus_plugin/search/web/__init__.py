"""The web page of `cerberus serve`, to search a gallery in a browser. It loads nothing from other servers."""
