"""Own data: tables or folders of images, their attributes as text, and the checks of `cerberus check`.

No module of this package needs torch.
"""
