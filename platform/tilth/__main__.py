"""`python -m tilth`: the entry point of every job."""

from __future__ import annotations

import sys

from tilth.cli import main

if __name__ == "__main__":
    sys.exit(main())
