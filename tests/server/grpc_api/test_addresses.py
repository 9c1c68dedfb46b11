"""Where the gRPC service listens: what the settings refuse, and what `bentoml serve` refuses to start with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.live_server import BENTOML, PATIENCE, ROOT, free_port, serving
from support.tiny_bundle import TinyTwin

from server.grpc_api import addresses
from server.settings import Settings, SettingsError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tritonclient.grpc as triton


def test_addresses_are_checked_and_separated_by_commas() -> None:
    given = "127.0.0.1:3001, unix:/run/v1t.sock,[::1]:3001"
    settings = Settings.from_environment({"V1T_GRPC": given})
    assert settings.grpc == ("127.0.0.1:3001", "unix:/run/v1t.sock", "[::1]:3001")
    assert addresses.hosts(settings.grpc) == ["127.0.0.1", "::1"]
    assert "V1T_GRPC=127.0.0.1:3001,unix:/run/v1t.sock,[::1]:3001" in settings.describe()
    for wrong in ("3001", "localhost:3001", "unix:relative.sock", "127.0.0.1", "http://127.0.0.1:3001"):
        with pytest.raises(SettingsError, match=r"is not an address, such as 127\.0\.0\.1:3001 or unix:/run/v1t\.sock"):
            Settings.from_environment({"V1T_GRPC": wrong})


def test_a_port_in_use_is_named_with_the_setting_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        problem = addresses.address_problem([f"127.0.0.1:{port}"])
    assert f"port {port} of 127.0.0.1 is in use" in str(problem)
    assert f"V1T_GRPC=127.0.0.1:{port + 1}" in str(problem)
    assert addresses.address_problem([f"127.0.0.1:{port}", "unix:/run/v1t.sock"]) is None


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses.check_installed()
    monkeypatch.setattr(addresses, "find_spec", lambda name: None if name == "grpc_health" else SimpleNamespace())
    with pytest.raises(SettingsError, match=r"grpc_health\. pip install -r server/requirements-grpc\.txt"):
        addresses.check_installed()
    assert (ROOT / "server" / "requirements-grpc.txt").is_file()


@pytest.mark.slow
def test_bentoml_refuses_to_show_grpc_to_other_machines_without_keys(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("V1T_", "BENTOML_"))}
    result = subprocess.run(
        [*BENTOML, "serve", str(ROOT), "--port", str(free_port())],
        cwd=tmp_path,
        env={**environment, "BENTOML_HOME": str(tmp_path / "bentoml"), "V1T_GRPC": f"0.0.0.0:{free_port()}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 1
    assert "0.0.0.0, which other machines can reach, and has no API keys" in result.stderr


@pytest.mark.slow
def test_a_server_that_stops_answers_the_calls_in_flight(twin: TinyTwin, tmp_path: Path) -> None:
    rng, address = np.random.default_rng(0), f"127.0.0.1:{free_port()}"
    arrays = twin.draw("A", rng, 3)
    tensors = []
    for name, array in zip(("image", "behavior", "pupil_center"), arrays, strict=True):
        tensors.append(triton.InferInput(name, list(array.shape), "FP32"))
        tensors[-1].set_data_from_numpy(array)
    answered, refused = [], []
    with serving(twin.folder.parent, tmp_path, V1T_GRPC=address) as server:
        server.wait_for("/readyz", 200)

        def ask() -> None:
            with triton.InferenceServerClient(address) as client:
                while True:
                    try:
                        answered.append(client.infer("tiny.A", tensors).as_numpy("responses"))
                    except triton.InferenceServerException as error:
                        refused.append(str(error))
                        return

        clients = [threading.Thread(target=ask) for _ in range(8)]
        for client in clients:
            client.start()
        while len(answered) < 50:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(PATIENCE)
        server.process.wait(PATIENCE)
        log = server.log.read_text()
    for responses in answered:
        np.testing.assert_allclose(responses, twin.answer("A", *arrays), atol=1e-5)
    assert len(refused) == 8
    assert all("UNAVAILABLE" in text for text in refused), refused
    assert "gRPC on 127.0.0.1:" in log
    assert "Traceback" not in log
