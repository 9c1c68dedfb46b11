"""`python -m v1t_client`: the same as the command `v1t`."""

from __future__ import annotations

import sys

from v1t_client._cli import main

if __name__ == "__main__":
    sys.exit(main())
