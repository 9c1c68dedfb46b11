"""The HTTP library. It is imported in this file only, so that the client moves to another one here.

httpx has had no release since December 2024. Its successor, httpx2, has the same names, and the tests run the client
on each of the two that is installed. The client stays with httpx for as long as that has no open security advisory and
runs on every Python that the client supports. To move: replace both names here, and `httpx` in pyproject.toml.
"""

from __future__ import annotations

import typing

import httpx

if typing.TYPE_CHECKING:
    import httpcore

__all__ = ["httpcore", "httpx"]


def __getattr__(name: str) -> typing.Any:
    if name == "httpcore":  # below httpx, which imports it late, too
        import httpcore

        return httpcore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
