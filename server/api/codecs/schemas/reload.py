"""What a reload of the bundles did."""

from __future__ import annotations

from pydantic import Field

from server.api.codecs.schemas.fields import ClosedModel

__all__ = [
    "ReloadReply",
    "ServedBundle",
]


class ServedBundle(ClosedModel):
    name: str
    version: str
    hash: str = Field(description="SHA-256 over the bundle's manifest")
    in_memory: bool = Field(description="False: loaded on the next request")


class ReloadReply(ClosedModel):
    loaded: list[ServedBundle]
    kept: list[ServedBundle]
    removed: list[ServedBundle]
