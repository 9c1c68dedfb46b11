"""Fixtures of the tests of in-silico experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def rendered_figures() -> None:
    """Requested by quick tests that render their figures; see `_empty_figures`."""


@pytest.fixture(autouse=True)
def _empty_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In quick tests figures are drawn but saved as empty files, because rendering takes most of the time."""
    if "rendered_figures" in request.fixturenames or request.node.get_closest_marker("slow"):
        return

    def save(self: Figure, path: Path, **options: Any) -> None:
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", save)
