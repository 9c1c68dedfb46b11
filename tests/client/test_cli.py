"""The command `v1t`: what it asks, prints and writes, and how it fails."""

from __future__ import annotations

import csv
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import v1t_client
import v1t_client._cli.tables as tables
from PIL import Image
from support.contract_server import MEDIAN_SPEED, SHAPE, ContractServer, error_reply
from v1t_client._cli import command as cli

V1T = [sys.executable, "-m", "v1t_client"]


@pytest.fixture
def v1t(server, monkeypatch, capsys, tmp_path):
    """Runs a command line in a folder with `image.png`; gives exit code, stdout, stderr."""
    monkeypatch.setattr(cli, "Client", functools.partial(v1t_client.Client, transport=server.transport()))
    monkeypatch.delenv("V1T_URL", raising=False)
    monkeypatch.delenv("V1T_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, SHAPE[1:], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")

    def run(line: str) -> tuple[int, str, str]:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def expected(server: ContractServer, speed: float = MEDIAN_SPEED) -> np.ndarray:
    """(n,) responses of mouse A to image.png, which the server reads as a flat image."""
    grey = len(Path("image.png").read_bytes()) % 251
    return server.responses(np.full((1, *SHAPE), grey), np.array([speed]), server.neuron_ids["A"])[0]


def test_predict_prints_the_strongest_neurons_and_what_was_assumed(server, v1t):
    code, out, err = v1t("predict image.png --mouse A --pupil-dilation 41 --top 5")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[2:]]
    order = np.argsort(-expected(server))[:5]
    assert [int(row[1]) for row in rows] == server.neuron_ids["A"][order].tolist()
    assert [float(row[2]) for row in rows] == pytest.approx(expected(server)[order], abs=1e-4)
    assert err.splitlines() == [
        "simulated: Trained on a simulated recording.",
        "assumed: running_speed left out: the training median 0.05 cm/s",
    ]


def test_every_option_of_predict_reaches_the_server(server, v1t):
    ids = server.neuron_ids["A"][[4, 1]].tolist()
    code, out, _ = v1t(
        "predict image.png image.png --mouse A --pupil-dilation 41 --pupil-dilation-derivative -0.5 --running-speed 3 "
        f"--pupil-center -1.5 2 --neuron-ids {ids[0]},{ids[1]} --spread --units raw --resize fit --model demo"
    )
    assert code == 0
    seen = server.seen[0]
    assert len(seen.images) == 2
    assert {k: v if k in ("mouse", "units", "resize", "model") else json.loads(v) for k, v in seen.form.items()} == {
        "mouse": "A",
        "pupil_dilation": 41,
        "pupil_dilation_derivative": -0.5,
        "running_speed": 3,
        "pupil_center": [-1.5, 2],
        "neuron_ids": ids,
        "spread": True,
        "units": "raw",
        "resize": "fit",
        "model": "demo",
    }
    assert out.splitlines()[1].split() == ["image", "neuron", "response", "spread"]


def test_predict_writes_npy_csv_and_json(server, v1t):
    for ending in ("npy", "csv", "json"):
        code, out, err = v1t(f"predict image.png --mouse A --running-speed 4 --spread --top 0 --output out.{ending}")
        assert (code, out) == (0, "")
        assert f"wrote out.{ending}" in err
    truth = expected(server, 4.0)
    np.testing.assert_array_equal(np.load("out.npy"), np.stack([truth, truth / 10])[:, None])
    content = json.loads(Path("out.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(content["responses"], truth[None], rtol=1e-6)
    assert content["model"]["simulated"] is True
    with Path("out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["neuron_id"]) for row in rows] == server.neuron_ids["A"].tolist()
    np.testing.assert_allclose([float(row["response"]) for row in rows], truth, rtol=1e-6)
    np.testing.assert_allclose([float(row["spread"]) for row in rows], truth / 10, rtol=1e-6)


def test_an_npy_without_spread_has_two_axes(server, v1t):
    v1t("predict image.png image.png --mouse A --output out.npy")
    assert np.load("out.npy").shape == (2, 23)


@pytest.mark.parametrize("output", ["out.txt", "no/such/folder.npy", "there.csv", "out"])
def test_an_output_that_cannot_be_is_refused_before_asking(server, v1t, output):
    Path("there.csv").write_text("precious", encoding="utf-8")
    code, _, err = v1t(f"predict image.png --mouse A --output {output}")
    assert code == 2
    assert err.startswith("v1t: --output")
    assert server.seen == []
    assert Path("there.csv").read_text(encoding="utf-8") == "precious"
    assert v1t("predict image.png --mouse A --output there.csv --force")[0] == 0
    assert Path("there.csv").read_text(encoding="utf-8").startswith("image,file,neuron_id,response\n0,image.png,")


def test_mice_are_a_table(v1t):
    code, out, _ = v1t("mice")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["mouse", "model", "neurons"]
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [["A", "demo", "23"], ["B", "demo", "23"]]
    assert "1 x 36 x 64" in out


def test_a_mouse_is_a_card(v1t):
    code, out, _ = v1t("mouse B")
    assert code == 0
    for words in (
        "simulated-B (simulated)",
        "single_trial_correlation",
        "0.4100",
        "running_speed",
        "cm/s",
        "0.05",
        "3.2",
        "MIT",
    ):
        assert words in out


def test_neurons_are_filtered_and_counted(server, v1t):
    code, out, err = v1t("neurons A --score-min 0.3 --limit 3")
    assert code == 0
    good = np.flatnonzero(server.scores["A"] >= 0.3)
    assert [int(line.split()[0]) for line in out.splitlines()[1:]] == server.neuron_ids["A"][good][:3].tolist()
    assert f"3 of {len(good)} neurons" in err
    assert f"{server.readout_positions['A'][good][0, 1]:.1f}" in out.splitlines()[1]
    code, out, err = v1t("neurons A --limit 0 --x-min -100000")
    assert len(out.splitlines()) == 24
    assert err == ""


def test_ready_answers_with_its_exit_code(server, v1t):
    assert v1t("ready") == (0, "http://127.0.0.1:3000 is ready\n", "")
    server.script.append((503, {}, b""))
    code, out, err = v1t("ready")
    assert (code, out) == (1, "")
    assert "not ready" in err
    server.script.append((503, {}, b""))
    assert v1t("ready --wait 20")[0] == 0


def test_a_refusal_is_readable_lines_and_exit_code_1(server, v1t):
    server.script.append(error_reply(422, "invalid_input", "image is small", "(36, 64)", "(1, 144)", "Add --resize."))
    code, out, err = v1t("predict image.png --mouse A")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "v1t: image is small",
        "  got       (36, 64)",
        "  expected  (1, 144)",
        "  hint      Add --resize.",
        "  request   request-0 (HTTP 422)",
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "VERB"),
        ("predict", "--mouse"),
        ("predict image.png", "--mouse"),
        ("predict image.png --mouse A --running-speed fast", "'fast' is not a finite number"),
        ("predict image.png --mouse A --running-speed nan", "'nan' is not a finite number"),
        ("predict image.png --mouse A --neuron-ids 1,two", "12,99,7"),
        ("predict image.png --mouse A --resize stretch", "fit"),
        ("predict image.png --mouse A --top -1", "is not a count"),
        ("predict nothing.png --mouse A", "nothing.png"),
        ("predict image.png --mouse ''", "mouse is not a mouse id"),
        ("mice --url nowhere", "url is not an HTTP address"),
        ("mice --timeout 0", "is not above 0"),
        ("dance", "dance"),
    ],
)
def test_wrong_usage_is_exit_code_2_without_a_traceback(server, v1t, line, says):
    code, out, err = v1t(line)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 4
    assert server.seen == []


def test_url_and_key_come_from_the_environment(server, v1t, monkeypatch):
    monkeypatch.setenv("V1T_URL", "http://lab.example:8080")
    monkeypatch.setenv("V1T_API_KEY", "a-secret")
    v1t("mice")
    assert server.seen[-1].headers["host"] == "lab.example:8080"
    assert server.seen[-1].headers["authorization"] == "Bearer a-secret"
    v1t("mice --url http://other.example")
    assert server.seen[-1].headers["host"] == "other.example"
    for line in ("--help", "predict --help"):
        assert "a-secret" not in v1t(line)[1]


@pytest.mark.parametrize("verb", ["", "predict", "mice", "mouse", "neurons", "ready"])
def test_help_teaches(v1t, verb):
    code, out, _ = v1t(f"{verb} --help")
    assert code == 0
    if verb in ("", "predict"):
        assert "examples:\n  v1t" in out


def test_every_example_of_the_help_is_understood(server, v1t):
    for path in ("a.png", "b.png"):
        Path(path).write_bytes(Path("image.png").read_bytes())
    np.save("stimulus.npy", np.zeros(SHAPE, np.uint8))
    Path("photographs").mkdir()
    Path("photographs/1.png").write_bytes(Path("image.png").read_bytes())
    lines = [line.strip() for text in (cli._EXAMPLES, cli._PREDICT_EXAMPLES) for line in text.splitlines()]
    commands = [line.split("   ")[0].removeprefix("v1t ") for line in lines if line.startswith("v1t ")]
    assert len(commands) == 12
    for command in commands:
        if "--dataset" in command:  # by two servers: in test_mass_prediction.py
            assert cli._parser(experiments=False).parse_args(command.split()).url == ("http://a:3000", "http://b:3000")
            continue
        ids = ",".join(map(str, server.neuron_ids["A"][:3]))
        code, _, err = v1t(command.replace("12,99,7", ids))
        assert code == 0, err


def test_version_is_printed(v1t):
    assert v1t("--version") == (0, f"v1t-client {v1t_client.__version__}\n", "")


def test_the_command_works_as_a_process(server, tmp_path):
    Image.fromarray(np.zeros(SHAPE[1:], np.uint8)).save(tmp_path / "image.png")
    with server.listening() as url:
        run = subprocess.run(
            [*V1T, "predict", "image.png", "--mouse", "B"],
            cwd=tmp_path,
            env={**os.environ, "V1T_URL": url},
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr
    assert "mouse B, model demo" in run.stdout


def test_nobody_there_is_said_without_a_traceback(capsys):
    assert cli.main(["mice", "--url", "http://127.0.0.1:9", "--retries", "0"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("v1t: no answer from http://127.0.0.1:9: ")
    assert "make serve" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(server):
    with server.listening() as url:
        process = subprocess.Popen(
            [*V1T, "neurons", "A", "--url", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        process.wait()
    assert "Traceback" not in err
    assert "Exception" not in err


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(server):
    server.script += [(503, {}, b"")] * 1000
    with server.listening() as url:
        process = subprocess.Popen(
            [*V1T, "ready", "--wait", "60", "--url", url],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not server.seen and process.poll() is None:  # it is up once it has asked
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        process.stderr.close()
        process.wait()
    assert (process.returncode, err) == (130, "v1t: interrupted\n")


def test_an_interrupt_in_the_middle_is_said(v1t, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(v1t_client.Client, "mice", interrupted)
    assert v1t("mice") == (130, "", "v1t: interrupted\n")


def test_numbers_stand_right_and_words_left():
    assert tables._table(["name", "n"], [["a", "1"], ["bbbbb", "1,000"]]) == "name       n\na          1\nbbbbb  1,000"
