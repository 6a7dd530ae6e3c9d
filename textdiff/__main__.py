"""`python -m textdiff` is the command `textdiff`."""

import sys

from textdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
