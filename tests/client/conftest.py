"""Fixtures of the client's tests: the contract server, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.contract_server import ContractServer
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
