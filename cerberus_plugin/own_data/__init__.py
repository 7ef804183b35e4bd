"""People's own data: tables or folders of pictures, their attributes in words, and what `cerberus check` says of them.

Nothing here needs torch.
"""
