"""`python -m hpc_ewc`: the same as `hpc-ewc`."""

from __future__ import annotations

import sys

from hpc_ewc.cli import main

if __name__ == "__main__":
    sys.exit(main())
