"""The version of the client, and of everything else in its repository."""

from __future__ import annotations

__version__ = "0.1.0"
