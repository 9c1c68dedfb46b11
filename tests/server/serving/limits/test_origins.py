"""Which hosts and origins a server without keys answers: programs always, pages of its own, others by name."""

from __future__ import annotations

import socket

import pytest
from support.in_process import serving
from support.tiny_bundle import TinyTwin

from server.errors import Forbidden
from server.serving.limits.origins import Origins
from server.settings import Settings

ORIGINS = Origins(Settings(hosts=("Twins.example.org",), cors_origins=("http://localhost:8888",)))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:3000"},
        {"host": "localhost:3000"},
        {"host": "LOCALHOST"},
        {"host": "twin.localhost:3000"},
        {"host": "[::1]:3000"},
        {"host": "10.1.2.3"},
        {"host": socket.gethostname()},
        {"host": "twins.example.org:3000"},
        {"host": "twins.example.org."},
        {},
        {"host": "localhost:3000", "origin": "http://localhost:3000"},
        {"host": "localhost", "origin": "http://localhost"},
        {"host": "localhost:80", "origin": "http://localhost"},
        {"host": "twins.example.org", "origin": "https://twins.example.org"},
        {"host": "[::1]:3000", "origin": "http://[::1]:3000"},
        {"host": "localhost:3000", "origin": "http://localhost:8888", "sec-fetch-site": "same-site"},
        {"host": "localhost:3000", "sec-fetch-site": "same-origin"},
        {"host": "localhost:3000", "sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
    ],
)
def test_programs_and_pages_of_the_server_itself_are_answered(headers: dict[str, str]) -> None:
    ORIGINS.check("POST", headers)


def test_a_link_to_the_page_is_followed() -> None:
    visit = {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    ORIGINS.check("GET", visit)
    with pytest.raises(Forbidden):
        ORIGINS.check("POST", visit)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:3000", "origin": "http://evil.example:3000"},  # DNS rebinding
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "[::1", "origin": "http://[::1"},
        {"host": "localhost:3000", "origin": "http://evil.example"},
        {"host": "localhost:3000", "origin": "null"},
        {"host": "localhost:3000", "origin": "http://localhost:8889"},
        {"host": "localhost:3000", "origin": "http://localhost"},
        {"host": "localhost:3000", "origin": "http://localhost:x"},
        {"host": "localhost:3000", "origin": "http://localhost:3000.evil.example"},
        {"host": "localhost:3000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    ],
)
def test_other_hosts_and_origins_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden, match=r"V1T_HOSTS|V1T_CORS_ORIGINS"):
        ORIGINS.check("POST", headers)


def test_the_hints_help() -> None:
    Origins(Settings(hosts=("evil.example",))).check("GET", {"host": "evil.example"})
    Origins(Settings(public_url="https://evil.example/twins")).check(
        "POST", {"host": "10.0.0.1", "origin": "https://evil.example"}
    )
    Origins(Settings(hosts=("*",))).check("GET", {"host": "evil.example"})
    Origins(Settings(cors_origins=("http://evil.example",))).check("POST", {"origin": "http://evil.example"})
    Origins(Settings(cors_origins=("*",))).check("POST", {"origin": "http://evil.example"})


async def test_a_server_with_keys_needs_no_origins_and_one_without_checks_them(twin: TinyTwin) -> None:
    key = "k" * 24
    rebound = {"Host": "evil.example"}
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", threads=1)) as client:
        assert (await client.get("/mice")).status_code == 200
        refused = await client.get("/mice", headers=rebound)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        posted = await client.post(
            "/predict", content=b"{}", headers={"Origin": "http://evil.example", "Content-Type": "text/plain"}
        )
        assert posted.status_code == 403
        for path in ("/livez", "/readyz"):  # probes may use any name
            assert (await client.get(path, headers=rebound)).status_code == 200
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", threads=1, api_keys=(key,))) as client:
        assert (await client.get("/mice", headers=rebound)).status_code == 401
        assert (await client.get("/mice", headers={**rebound, "Authorization": f"Bearer {key}"})).status_code == 200
