"""Fixtures of the client's tests: the contract server, a client of it, and the served demo twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.contract_server import ContractServer
from support.live_server import ROOT, Server, serving
from v1t_client import Client


@pytest.fixture
def server() -> ContractServer:
    return ContractServer()


@pytest.fixture
def client(server: ContractServer) -> Iterator[Client]:
    with Client(transport=server.transport(), retries=0) as client:
        yield client


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A live server of `exported_models/`, ready."""
    with serving(ROOT / "exported_models", tmp_path_factory.mktemp("demo_server"), V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        yield server
