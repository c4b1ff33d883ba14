"""`python -m research`: the same as the `research` command."""

import sys

from research.cli import main

if __name__ == "__main__":
    sys.exit(main())
