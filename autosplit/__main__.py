"""``python -m autosplit``: the command line."""

import sys

from autosplit.cli import main

if __name__ == "__main__":
    sys.exit(main())
