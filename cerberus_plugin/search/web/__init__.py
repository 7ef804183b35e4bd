"""The page of `cerberus serve`: a gallery searched in a browser. Pages are made here, and load nothing from elsewhere.
"""
