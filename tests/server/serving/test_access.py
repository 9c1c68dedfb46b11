"""API keys from the environment and from a file that changes, and the rules without keys."""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.in_process import serving
from support.live_server import BENTOML, PATIENCE, ROOT
from support.live_server import serving as serving_live
from support.tiny_bundle import TinyTwin

from server.errors import Busy, Unauthorized
from server.serving.access import Access, is_loopback, listening_hosts
from server.serving.limits.concurrency_limiter import ConcurrencyLimiter
from server.settings import Settings, SettingsError

ONE, TWO, THREE = (f"{word}-0123456789-abcdef" for word in ("one", "two", "three"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_with_keys_only_requests_with_a_key_are_answered(twin: TinyTwin) -> None:
    settings = Settings.from_environment({"V1T_BUNDLES": str(twin.folder), "V1T_API_KEYS": f"{ONE}, {TWO}"})
    async with serving(settings) as client:
        for path in ("/mice", "/docs.json", "/metrics", "/nowhere", "/v2", "/v2/models/stats"):
            for headers in ({}, bearer(THREE), bearer(""), bearer(ONE[:-1]), {"Authorization": f"Basic {ONE}"}):
                response = await client.get(path, headers=headers)
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert "Authorization: Bearer" in response.text
        error = (await client.get("/mice")).json()["error"]
        assert error["code"] == "unauthorized"
        assert "Authorization: Bearer" in error["hint"]
        for path in ("/livez", "/readyz"):
            assert (await client.get(path)).status_code != 401
        for path in ("/", "/docs", "/explorer/main.js"):  # the page, which asks for the key, and knows no mouse
            page = await client.get(path)
            assert page.status_code == 200
            assert twin.manifest.name not in page.text
        for key in (ONE, TWO):
            assert (await client.get("/docs.json", headers=bearer(key))).status_code == 200
        odd = {b"Authorization": "Bearer ключ".encode()}
        assert (await client.get("/docs.json", headers=odd)).status_code == 401


async def test_a_body_without_a_key_is_not_read(twin: TinyTwin) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        sent.append(1)
        yield b" " * 1000

    sent: list[int] = []
    async with serving(Settings(bundles=(twin.folder,), api_keys=(ONE,))) as client:
        assert (await client.post("/predict", content=chunks())).status_code == 401
    assert not sent


async def test_without_keys_all_requests_on_loopback_are_answered(twin: TinyTwin) -> None:
    async with serving(Settings(bundles=(twin.folder,))) as client:
        assert (await client.get("/docs.json")).status_code == 200
        assert (await client.get("/docs.json", headers=bearer("anything"))).status_code == 200


def test_keys_of_a_file_change_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("bentoml"), "propagate", True)
    file = tmp_path / "keys"
    file.write_text(f"# of the lab\n{ONE}\n\n{TWO} # until March\n")
    access = Access(Settings(api_keys_file=file, api_keys=(THREE,)))
    names = {access.check(f"bearer {key}") for key in (ONE, TWO, THREE)}
    assert len(names) == 3
    assert not {key for key in (ONE, TWO, THREE) for name in names if key in str(name)}
    file.write_text(f"{TWO}\n")
    os.utime(file, ns=(1, 1))
    with pytest.raises(Unauthorized):
        access.check(f"Bearer {ONE}")
    access.check(f"Bearer {TWO}")
    with caplog.at_level(logging.ERROR, "bentoml.v1t"):
        file.write_text("short\n")
        os.utime(file, ns=(2, 2))
        access.check(f"Bearer {TWO}")  # a bad file does not change the keys
        file.unlink()
        access.check(f"Bearer {TWO}")
    assert "line 1: a key is 16 or more" in caplog.text
    assert "gone" in caplog.text
    assert "short" not in caplog.text
    file.write_text(f"{ONE}\n")
    access.check(f"Bearer {ONE}")
    with pytest.raises(Unauthorized):
        access.check(f"Bearer {TWO}")
    file.write_text("")
    os.utime(file, ns=(3, 3))
    with pytest.raises(Unauthorized):  # a file without keys opens nothing; V1T_API_KEYS still does
        access.check(f"Bearer {ONE}")
    access.check(f"Bearer {THREE}")


@pytest.mark.parametrize("kind", ["emptied", "only comments", "a FIFO", "a folder", "too large"])
def test_a_file_of_keys_that_cannot_be_used_any_more_leaves_the_keys_as_they_were_and_says_so(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("bentoml"), "propagate", True)
    file = tmp_path / "keys"
    file.write_text(f"{ONE}\n")
    access = Access(Settings(api_keys_file=file))
    assert access.key_problems == []
    file.unlink()
    if kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    else:
        file.write_text({"emptied": "", "only comments": "# none\n"}.get(kind, f"{ONE}\n" * 100_000))
    with caplog.at_level(logging.ERROR, "bentoml.v1t"):
        for _ in range(3):
            access.check(f"Bearer {ONE}")
    assert caplog.text.count("the keys stay as they were") == 1
    assert str(file) in caplog.text
    (problem,) = access.key_problems
    assert str(file) in problem
    (tmp_path / "new").write_text(f"{TWO}\n")
    if kind == "a folder":
        file.rmdir()
    (tmp_path / "new").replace(file)
    access.check(f"Bearer {TWO}")
    assert access.key_problems == []


def test_every_key_is_compared_in_full_for_any_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(f"{TWO}\n{THREE}\n")
    access = Access(Settings(api_keys=(ONE,), api_keys_file=tmp_path / "keys"))
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def count(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", count)
    for key in (ONE, THREE, f"{ONE[:-1]}x", "x"):
        compared.clear()
        with contextlib.suppress(Unauthorized):
            access.check(f"Bearer {key}")
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "short\n", f"{ONE} {TWO}\n"])
def test_a_file_of_keys_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(SettingsError, match="V1T_API_KEYS_FILE is"):
        Access(Settings(api_keys_file=tmp_path / "keys"))


def test_keys_are_never_printed() -> None:
    settings = Settings.from_environment({"V1T_API_KEYS": f"{ONE},{TWO}"})
    assert "V1T_API_KEYS=(2 hidden)" in settings.describe()
    for text in (settings.describe(), repr(settings), str(settings.model_dump())):
        assert ONE not in text
    with pytest.raises(SettingsError, match="V1T_API_KEYS is wrong: a key is 16 or more") as refused:
        Settings.from_environment({"V1T_API_KEYS": f"{ONE},too-short"})
    assert "too-short" not in str(refused.value)
    assert ONE not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("twins.example.org", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_those_that_only_this_machine_can_reach(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_the_addresses_listened_on_are_those_of_open_sockets() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.9", 0))
        assert "127.0.0.9" not in listening_hosts()
        one.listen()
        assert "127.0.0.9" in listening_hosts()
    assert "127.0.0.9" not in listening_hosts()
    before = os.listdir("/dev/fd")
    listening_hosts()
    assert os.listdir("/dev/fd") == before


async def test_a_worker_that_other_machines_can_reach_refuses_all_requests_without_keys(
    twin: TinyTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.listening_hosts", lambda: {"0.0.0.0"})
    async with serving(Settings(bundles=(twin.folder,))) as client:
        response = await client.get("/mice")
        assert response.status_code == 401
        for words in ("0.0.0.0", "V1T_API_KEYS", "V1T_ALLOW_ANONYMOUS=true"):
            assert words in response.json()["error"]["hint"]
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
    async with serving(Settings(bundles=(twin.folder,), allow_anonymous=True)) as client:
        assert (await client.get("/docs.json")).status_code == 200
    async with serving(Settings(bundles=(twin.folder,), api_keys=(ONE,))) as client:
        assert (await client.get("/docs.json", headers=bearer(ONE))).status_code == 200


def test_concurrent_requests_are_limited_per_caller() -> None:
    limiter = ConcurrencyLimiter(2)
    with limiter.slot("a"), limiter.slot("a"), limiter.slot("b"):
        with pytest.raises(Busy, match="3 at once") as refused, limiter.slot("a"):
            pass
        assert refused.value.retry_after == 1
    with pytest.raises(RuntimeError), limiter.slot("a"):
        raise RuntimeError  # an error inside frees the slot
    with limiter.slot("a"), limiter.slot("a"):
        pass
    assert not limiter._inside


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "variable", "configuration"])
def test_on_other_addresses_without_keys_the_server_refuses_to_start_with_a_hint(tmp_path: Path, how: str) -> None:
    (tmp_path / "configuration.yaml").write_text("services:\n  twin_server:\n    http:\n      host: 0.0.0.0\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("V1T_", "BENTOML_"))}
    more = {"variable": {"BENTOML_HOST": "0.0.0.0"}, "configuration": {"BENTOML_CONFIG": "configuration.yaml"}}
    options = ["--host", "0.0.0.0"] if how == "option" else []
    result = subprocess.run(
        [*BENTOML, "serve", str(ROOT), "--port", "0", *options],
        cwd=tmp_path,
        env={**environment, "BENTOML_HOME": str(tmp_path / "bentoml"), **more.get(how, {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 1, result.stdout
    for words in ("bound to 0.0.0.0", "V1T_API_KEYS", "V1T_ALLOW_ANONYMOUS=true"):
        assert words in result.stderr


@pytest.mark.slow
def test_on_other_addresses_with_keys_the_server_answers_requests_with_a_key(twin: TinyTwin, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(ONE)
    file = str(tmp_path / "keys")
    with serving_live(twin.folder, tmp_path, "--host", "0.0.0.0", V1T_API_KEYS_FILE=file, V1T_API_KEYS=TWO) as server:
        server.wait_for("/readyz", 200)
        assert httpx.get(f"{server.url}/mice").status_code == 401
        for key in (ONE, TWO):
            assert httpx.get(f"{server.url}/mice", headers=bearer(key)).status_code == 200
        log = server.log.read_text()
    assert "V1T_API_KEYS=(1 hidden)" in log
    assert ONE not in log
    assert TWO not in log
