"""What importing the client, and asking a server on the command line, loads: little, as each start pays for it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import v1t_client

EXPERIMENTS = {"scipy", "xarray", "pandas", "matplotlib", "PIL", "v1t_client.insilico", "v1t_client._cli.experiments"}


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_alone_loads_neither_numpy_nor_httpx() -> None:
    assert not loaded_by("import v1t_client") & {"numpy", "httpx", "asyncio", *EXPERIMENTS}


def test_a_client_loads_nothing_of_the_experiments() -> None:
    loaded = loaded_by("from v1t_client import Client; Client('http://127.0.0.1:1')")
    assert "v1t_client._client" in loaded
    assert not loaded & {*EXPERIMENTS, "v1t_client._async_client"}


@pytest.mark.parametrize("verb", ["ready", "mice", "predict"])
def test_the_command_line_loads_the_experiments_only_for_their_verbs(verb: str) -> None:
    image = ["missing.png", "--mouse", "A"] if verb == "predict" else []
    arguments = [verb, *image, "--url", "http://127.0.0.1:1", "--retries", "0"]
    loaded = loaded_by(f"from v1t_client._cli import main\nassert main({arguments}) != 0")
    assert "v1t_client._cli.tables" in loaded
    assert not loaded & EXPERIMENTS


def test_every_public_name_is_found_where_it_is_defined() -> None:
    for name in v1t_client.__all__:
        if name != "__version__":
            assert getattr(v1t_client, name) is getattr(import_module(f"v1t_client.{v1t_client._MODULES[name]}"), name)
    assert set(v1t_client._MODULES) | {"__version__"} == set(v1t_client.__all__)
    assert set(v1t_client.__all__) <= set(dir(v1t_client))
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        v1t_client.Clinet  # noqa: B018
