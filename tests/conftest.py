"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.checkout import REFERENCE


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference code's checkpoints and golden outputs, which lie beside the checkout where there are any."""
    if not REFERENCE.is_dir():
        message = "reference checkpoints are not beside this checkout"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return REFERENCE
