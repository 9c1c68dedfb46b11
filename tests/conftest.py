"""Fixtures that every test file shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkout import REFERENCE, ROOT
from support.live_server import Server, serving
from support.shared_export import built_once
from support.tiny_bundle import TinyTwin, write_tiny_bundle


def pytest_configure() -> None:
    """A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would do so, too.

    No `preexec_fn` for that: it forks this process, and gRPC's threads in it do not survive a fork.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that the last files to be handed to the workers are short ones."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference code's checkpoints and golden outputs, which lie beside the checkout where there are any."""
    if not REFERENCE.is_dir():
        message = "reference checkpoints are not beside this checkout"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return REFERENCE


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def reference_bundle(reference: Path, shared_tmp: Path) -> Callable[[str], Path]:
    """Exports a case of `support.golden.CASES` on its first use; see there for the options."""
    from support.golden import export_golden  # torch, which most tests do without

    return lambda case: built_once(shared_tmp / "reference-bundles" / case, lambda folder: export_golden(case, folder))


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    """A bundle whose numerics are a formula in numpy; not to be changed on disk."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A live server of `exported_models/`, ready."""
    with serving(ROOT / "exported_models", tmp_path_factory.mktemp("demo-server"), V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        yield server
