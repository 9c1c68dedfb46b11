"""A plugin of pytest (`-p support.httpx2_plugin`): the client and its tests get httpx2 wherever they import httpx."""

from __future__ import annotations

import sys

import httpcore2
import httpx2

sys.modules |= {"httpx": httpx2, "httpcore": httpcore2}
