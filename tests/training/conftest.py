"""Recordings that most tests of the trainer share; they only read them."""

from __future__ import annotations

import pytest
from support.tiny_twins import tiny_recordings

from training.data.mouse import by_mouse
from training.data.recordings import Recording


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    """SIM1 with 20 training trials, SIM2 with 13."""
    return by_mouse(tiny_recordings(tmp_path_factory.mktemp("recordings")))
