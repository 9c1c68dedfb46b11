"""The paced benchmark of a closed loop: how lateness is counted, and what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.live_server import free_port, serving
from support.tiny_bundle import TinyTwin

from server.__main__ import main
from server.paced import late_by, pace


def test_a_late_answer_makes_the_next_turns_late() -> None:
    now = 100.0
    takes = iter([0.01, 0.01, 0.26, 0.01, 0.01, 0.01, 0.01, 0.01])

    def ask() -> None:
        nonlocal now
        now += next(takes)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    seconds = pace(ask, hz=10, turns=8, clock=lambda: now, sleep=sleep)
    # Turn 2 is due at 0.2 and answered at 0.46; 3 and 4 wait for it; 5, due at 0.5, is in time again.
    np.testing.assert_allclose(seconds, [0.01, 0.01, 0.26, 0.17, 0.08, 0.01, 0.01, 0.01], atol=1e-9)
    assert now == pytest.approx(100.71)
    assert late_by(seconds, 0.1).split() == ["8", "10.00", "260.00", "260.00", "2"]


def test_a_bundle_is_paced_in_this_process(twin: TinyTwin, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--paced", "50", "--minutes", "0.01", "--provider", "cpu", "--threads", "1"]
    assert main(["bench", str(twin.folder), *options, "--within", "60", "--bulk", "1"]) == 0
    said = capsys.readouterr().out
    assert "tiny in this process, mouse A, 7 neurons; 1 image a turn" in said
    assert re.search(r"^alone +30 .* 0$", said, re.MULTILINE)
    assert re.search(r"^beside 1 bulk client +30 .* 0   \d+ bulk images/s$", said, re.MULTILINE)
    assert main(["bench", str(twin.folder), *options, "--within", "1e-9", "--bulk", "0"]) == 1
    assert "beside" not in capsys.readouterr().out


def test_what_cannot_be_paced_is_named(twin: TinyTwin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"http://127.0.0.1:{free_port()}", "--paced", "10"]) == 1
    assert "the server cannot be reached" in capsys.readouterr().err
    assert main(["bench", str(twin.folder), "--paced", "10", "--mouse", "Z"]) == 1
    assert "there is no such mouse; got 'Z'; expected A or B" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", str(twin.folder), "--paced", "0"])
    assert "'0' is not a number above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_is_paced_over_http_grpc_and_a_unix_socket(
    twin: TinyTwin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, socket = free_port(), f"unix:{tmp_path / 'v1t.sock'}"
    with serving(twin.folder.parent, tmp_path, V1T_GRPC=f"127.0.0.1:{port},{socket}") as server:
        server.wait_for("/readyz", 200)
        for address in (server.url, f"grpc://127.0.0.1:{port}", socket):
            options = ["--paced", "20", "--minutes", "0.02", "--within", "60", "--mouse", "B", "--images", "3"]
            assert main(["bench", address, *options]) == 0, capsys.readouterr()
            assert re.search(
                r"^beside 2 bulk clients +24 .* 0   \d+ bulk images/s$", capsys.readouterr().out, re.MULTILINE
            )
