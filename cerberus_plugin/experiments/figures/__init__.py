"""The figures of the paper, each drawn of one's own run by one command: a picture, its caption and who made it."""
