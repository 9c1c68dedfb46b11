"""What answers for a bundle: the server that is installed, that of a checkout, or a private one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.live_server import processes_serving
from support.tiny_bundle import write_tiny_bundle
from v1t_client import ConnectionFailed, InvalidArgument, NotReady
from v1t_client.insilico import Subject, open_predictor
from v1t_client.insilico.framework import predictors

DEMO = ROOT / "exported_models" / "demo"


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "entry_points", lambda group: [])
    monkeypatch.delenv("V1T_HOME", raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = [EntryPoint("server", value, "v1t_client.in_process") for value in values]
    monkeypatch.setattr(predictors, "entry_points", lambda group: points)


def test_what_is_neither_url_nor_bundle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="neither a URL nor a bundle"), open_predictor(tmp_path):
        pass
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="V1T_HOME"), open_predictor(tmp_path):
        pass


def test_installed_server_answers_wherever_the_bundle_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lacks a package of its own is passed over."""
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    monkeypatch.chdir(tmp_path)
    installed(monkeypatch, "no_such_package:open_bundle", "server.in_process:open_bundle")
    with pytest.raises(NotReady, match="schema_version"), open_predictor(tmp_path):
        pass


def test_checkout_that_is_named_comes_before_the_installed_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "server.in_process:open_bundle")
    monkeypatch.setenv("V1T_HOME", str(tmp_path))
    with pytest.raises(InvalidArgument, match="no server package"), open_predictor(DEMO):
        pass


def test_checkout_answers_in_process_unless_another_server_was_imported(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from v1t_client.insilico.framework.predictors import _in_checkout
other, home = Path({str(tmp_path)!r}), Path({str(ROOT)!r})
before = list(sys.path)
opens = _in_checkout(home)
assert opens.__module__ == "server.in_process" and sys.path == before
assert _in_checkout(other) is None
for name in [name for name in sys.modules if name.partition(".")[0] in ("server", "starlette")]:
    del sys.modules[name]
sys.modules["starlette"] = None  # not installed
assert _in_checkout(home) is None and "server" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=90)


def test_opening_a_predictor_loads_no_experiment() -> None:
    code = """
import sys
from v1t_client.insilico import open_predictor
loaded = {"scipy", "xarray", "pandas", "matplotlib", "server", "v1t_client.insilico.catalogue"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)


@pytest.mark.slow
def test_private_server_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this Python lacks what the server imports."""
    monkeypatch.setattr(predictors, "_in_checkout", lambda home: None)
    with open_predictor(DEMO) as twin:
        subject = Subject.of(twin, "SIM1", neuron_ids=[48, 369])
        assert subject.respond(subject.screen.blank(2)).shape == (2, 2)
        url = str(twin._http.base_url)
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(ConnectionFailed), open_predictor(url, retries=0) as gone:
        gone.mice()


@pytest.mark.slow
def test_bundle_that_the_private_server_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    monkeypatch.setenv("V1T_HOME", str(ROOT))
    monkeypatch.setattr(predictors, "_in_checkout", lambda home: None)
    with pytest.raises(NotReady, match="schema_version"), open_predictor(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_the_private_server_of_a_program_that_is_killed_ends(tmp_path: Path, ending: signal.Signals) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny").folder
    code = "import sys, time; from v1t_client.insilico.framework import predictors\n"
    code += "predictors._installed = predictors._in_checkout = lambda *_: None\n"  # as in another environment
    code += "with predictors.open_predictor(sys.argv[1]): print('open', flush=True); time.sleep(60)"
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"open\n"
        assert processes_serving(bundle)
        program.send_signal(ending)
        program.wait(30)
    deadline = time.monotonic() + 30
    while processes_serving(bundle) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_serving(bundle)
