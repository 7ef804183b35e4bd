"""`python -m cerberus_plugin.synthetic`: draw a data set."""

from .dataset import main

if __name__ == "__main__":
    main()
