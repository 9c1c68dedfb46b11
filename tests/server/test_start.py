"""How `bentoml serve` starts, and what it refuses to start with, each in one line that says what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.live_server import BENTOML, PATIENCE, ROOT, serving
from support.tiny_bundle import TinyTwin

from server.serving.access import port_problem


def start(workplace: Path, *options: str, **more: str) -> str:
    """What the server says on stderr before it gives up."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("V1T_", "BENTOML_"))}
    result = subprocess.run(
        [*BENTOML, "serve", str(ROOT), *options],
        cwd=workplace,
        env={**environment, "BENTOML_HOME": str(workplace / "bentoml"), **more},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_port_that_another_program_listens_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            problem = port_problem(host, port)
            assert problem is not None
            assert problem.startswith(f"port {port} of {host} is in use. ")
            assert f"--port {port + 1}" in problem
    assert port_problem("127.0.0.1", port) is None
    assert port_problem("127.0.0.1", 0) is None
    assert "not an IP address" in str(port_problem("localhost", 0))
    assert "0-65535" in str(port_problem("127.0.0.1", 99_999))
    assert "cannot listen on port 0 of 192.0.2.1" in str(port_problem("192.0.2.1", 0))  # of no machine


@pytest.mark.slow
def test_a_port_in_use_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = start(tmp_path, "--port", str(port))
    assert f"The server cannot start: port {port} of 127.0.0.1 is in use" in said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "configuration"])
def test_several_workers_are_refused(tmp_path: Path, how: str) -> None:
    (tmp_path / "configuration.yaml").write_text("services:\n  twin_server:\n    workers: 2\n")
    if how == "option":
        said = start(tmp_path, "--port", "0", "--api-workers", "2")
    else:
        said = start(tmp_path, "--port", "0", BENTOML_CONFIG="configuration.yaml")
    assert "configured to start 2 workers" in said.splitlines()[-1]
    assert "one server for each device" in said


@pytest.mark.slow
def test_a_misspelt_setting_ends_the_start(tmp_path: Path) -> None:
    assert "V1T_MAXBATCH is not a setting; did you mean V1T_MAX_BATCH?" in start(tmp_path, V1T_MAXBATCH="4")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_last_line_of_the_log_is_where_to_open_the_server(twin: TinyTwin, tmp_path: Path, host: str) -> None:
    more = {"V1T_ALLOW_ANONYMOUS": "true", "V1T_PORT": "tcp://10.0.0.1:80"}
    with serving(twin.folder, tmp_path, "--host", host, **more) as server:
        server.wait_for("/readyz", 200)
        port = server.url.rpartition(":")[2]
        while "ready: " not in (log := server.log.read_text()):  # it is written just after the first reply
            time.sleep(0.05)
        lines = log.splitlines()
        assert lines[-1].endswith(f"ready: open http://{'localhost' if host == '0.0.0.0' else host}:{port}")
        assert sum("not settings of the server, and ignored: V1T_PORT" in line for line in lines) == 1
