"""deploy/systemd, nginx and haproxy: the programs accept the files, and a live server answers behind them."""

from __future__ import annotations

import configparser
import contextlib
import re
import time
from pathlib import Path

import httpx
import pytest
from support.balancer import CONFIGURATION, haproxy_configuration, replaced, running
from support.checkout import ROOT
from support.live_server import PATIENCE, free_port, serving
from support.tiny_bundle import TinyTwin
from support.tools import run, tool

from server.serving.shutdown import Shutdown
from server.settings import Settings

DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "systemd" / "v1t.service").read_text()
NGINX = (DEPLOY / "nginx" / "v1t.conf").read_text()
ENVIRONMENT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "systemd" / "env").read_text().splitlines()
    if line and not line.startswith("#")
)


def nginx_configuration(folder: Path, port: int, upstream: int) -> Path:
    run(
        tool("openssl", "openssl"),
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab.example.org"),
        *("-addext", "subjectAltName=DNS:lab.example.org", "-keyout", folder / "key", "-out", folder / "certificate"),
    )
    ours = replaced(
        NGINX,
        **{
            "/etc/nginx/lab.example.org.crt": str(folder / "certificate"),
            "/etc/nginx/lab.example.org.key": str(folder / "key"),
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:3000": f"127.0.0.1:{upstream}",
        },
    )
    file = folder / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    file.write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{ours}}}\n"
    )
    return file


def answer(client: httpx.Client, url: str) -> httpx.Response:
    """The first reply with status 200."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (reply := client.get(url)).status_code == 200:
                return reply
        assert time.monotonic() < deadline, url
        time.sleep(0.1)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    programs = tmp_path / ".venv-serve" / "bin"
    programs.mkdir(parents=True)
    (programs / "bentoml").write_text("#!/bin/sh\n")
    (programs / "bentoml").chmod(0o755)
    unit = tmp_path / "v1t.service"
    # the user has to exist
    unit.write_text(replaced(UNIT, **{"/opt/v1t": str(tmp_path), "User=v1t": "User=www-data"}))
    systemd_analyze = tool("systemd-analyze", "systemd")
    assert "v1t.service" not in run(systemd_analyze, "verify", "--man=no", unit)
    unit.write_text(unit.read_text().replace("Restart=always", "Restrat=always"))
    assert "Restrat" in run(systemd_analyze, "verify", "--man=no", unit)


def test_the_unit_leaves_time_for_requests_in_flight_and_its_environment_is_accepted() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.read_string(UNIT)
    settings = Settings.from_environment(ENVIRONMENT)
    assert settings.drain + Shutdown.GRACE < int(unit["Service"]["TimeoutStopSec"])
    assert str(settings.api_keys_file) == "/etc/v1t/keys"


def test_nginx_accepts_its_file_and_waits_as_long_and_takes_as_much_as_the_server(tmp_path: Path) -> None:
    run(tool("nginx", "nginx-light"), "-t", "-c", nginx_configuration(tmp_path, free_port(), free_port()))
    seconds = re.search(r"proxy_read_timeout (\d+)s", NGINX)
    megabytes = re.search(r"client_max_body_size (\d+)m", NGINX)
    assert seconds is not None
    assert megabytes is not None
    assert int(seconds[1]) > Settings().timeout
    assert int(megabytes[1]) * 1024**2 == Settings().max_body


def test_haproxy_accepts_its_file_and_waits_as_long_as_the_server(tmp_path: Path) -> None:
    file = haproxy_configuration(tmp_path, free_port(), [free_port() for _ in range(3)])
    assert "WARNING" not in run(tool("haproxy", "haproxy"), "-c", "-f", file)
    seconds = re.search(r"timeout server +(\d+)s", CONFIGURATION)
    assert seconds is not None
    assert int(seconds[1]) > Settings().timeout


@pytest.mark.slow
def test_a_live_server_answers_behind_both(tmp_path: Path, twin: TinyTwin) -> None:
    nginx, haproxy, port = tool("nginx", "nginx-light"), tool("haproxy", "haproxy"), free_port()
    with serving(twin.folder, tmp_path, port=port, V1T_PUBLIC_URL="https://lab.example.org/twins") as server:
        server.wait_for("/readyz", 200)
        mice = httpx.get(f"{server.url}/mice").json()["mice"]
        front, balanced = free_port(), free_port()
        others = [free_port(), free_port()]  # down
        with (
            running(nginx, "-c", nginx_configuration(tmp_path, front, port)),
            running(haproxy, "-f", haproxy_configuration(tmp_path, balanced, [others[0], port, others[1]])),
            httpx.Client(verify=False, headers={"Host": "lab.example.org"}) as client,
        ):
            assert answer(client, f"https://127.0.0.1:{front}/twins/mice").json()["mice"] == mice
            body = b"x" * (65 * 1024**2)
            assert client.post(f"https://127.0.0.1:{front}/twins/predict", content=body).status_code == 413
            replies = [answer(client, f"http://127.0.0.1:{balanced}/mice") for _ in range(6)]
            assert all(reply.json()["mice"] == mice for reply in replies)
