"""The command `v1t`."""

from __future__ import annotations

from v1t_client._cli.command import main

__all__ = ["main"]
