"""``python -m tfprivacy_lab`` is the same as the command."""

import sys

from tfprivacy_lab.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
