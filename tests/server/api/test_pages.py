"""The page at /, behind proxies as well; and CORS."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.settings import Settings, SettingsError

PAGE = "https://lab.example.org"


def links(page: str) -> list[str]:
    return re.findall(r'href="([^"]*)"', page)


def examples(page: str) -> list[list[str]]:
    return [shlex.split(html.unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]


# The page


async def test_links_work_below_any_prefix_that_a_proxy_removes(twin: TinyTwin) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        page = (await client.get("/")).text
        for link in links(page):
            assert urljoin("https://lab.example.org/twins/", link).startswith("https://lab.example.org/twins/")
            assert (await client.get(urljoin("http://localhost/", link))).status_code == 200


@pytest.mark.parametrize("removed", [True, False], ids=["the proxy removes it", "the proxy passes it on"])
@pytest.mark.parametrize("url", ["https://lab.example.org/twins", "https://lab.example.org/a/b/", PAGE])
async def test_behind_a_proxy_the_page_its_examples_and_the_document_name_the_public_url(
    twin: TinyTwin, url: str, removed: bool
) -> None:
    base = url.rstrip("/")
    prefix = base.removeprefix(PAGE)

    async def ask(client: httpx.AsyncClient, public: str, method: str = "GET", **more: Any) -> httpx.Response:
        """What a browser gets for a URL that the proxy serves."""
        assert public.startswith(base), public
        path = public.removeprefix(PAGE)
        return await client.request(method, (path.removeprefix(prefix) or "/") if removed else path, **more)

    async with serving(cpu_settings(twin.folder, public_url=url)) as client:
        page = (await ask(client, f"{base}/")).text
        assert len(links(page)) == 4
        for link in links(page):
            assert (await ask(client, urljoin(f"{base}/", link))).status_code == 200
        command = examples(page)[0]
        reply = await ask(
            client,
            next(word for word in command if word.startswith("http")),
            "POST",
            content=command[command.index("-d") + 1],
            headers={"Content-Type": "application/json"},
        )
        assert reply.json()["mouse"] == "A"
        document = (await ask(client, f"{base}/docs.json")).json()
        assert document["servers"] == [{"url": base}]
        assert (await ask(client, f"{base}/mice")).json()["mice"][0]["mouse"] == "A"


async def test_a_prefix_opens_no_route_that_needs_a_key(twin: TinyTwin) -> None:
    settings = cpu_settings(
        twin.folder, public_url=f"{PAGE}/twins", api_keys=("0123456789abcdef",), admin_keys=("fedcba9876543210",)
    )
    async with serving(settings) as client:
        for path in ("/twins/mice", "/mice", "/twins/admin/reload", "/admin/reload", "/twins/twins/livez"):
            assert (await client.post(path)).status_code == 401, path
        key = {"Authorization": "Bearer 0123456789abcdef"}
        assert (await client.post("/twins/admin/reload", headers=key)).status_code == 401
        assert (await client.get("/twins/livez")).status_code == 200


@pytest.mark.parametrize("url", ["lab.example.org", "ftp://lab", "/twins", "https://lab/?x=1", "https:///twins"])
def test_what_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"V1T_PUBLIC_URL is .*expected a URL such as"):
        Settings.from_environment({"V1T_PUBLIC_URL": url})


async def test_the_page_says_what_is_simulated_and_what_takes_standardised_inputs(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bare", name="bare", mice=("S",), standardized=True)
    async with serving(cpu_settings(tmp_path)) as client:
        page = (await client.get("/")).text
        assert "<td>simulated</td>" in page
        assert "Random weights: for tests only." in page  # the bundle's notice
        assert "<td>standardised</td>" in page
        assert "takes no pictures" in page
        assert "picture.png" not in page
        (command,) = examples(page)
        question = json.loads(command[command.index("-d") + 1])
        assert question["image"] == [[[-1.0, 1.0], [1.0, -1.0]]]
        reply = (await client.post("/predict", json=question)).json()
        assert [note["code"] for note in reply["notes"]] == ["standardized_inputs"]
    write_tiny_bundle(tmp_path / "full", name="full", mice=("T",))
    async with serving(cpu_settings(tmp_path)) as client:
        page = (await client.get("/")).text
        assert ("takes no pictures" in page, "mouse=T" in page) == (True, True)


# CORS

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


async def test_without_the_setting_no_other_origin_may_ask(twin: TinyTwin) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        assert (await client.options("/predict", headers={"Origin": PAGE, **PREFLIGHT})).status_code == 403
        refused = await client.get("/mice", headers={"Origin": PAGE})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


async def test_origins_that_are_named_may_ask_and_read(twin: TinyTwin) -> None:
    settings = cpu_settings(twin.folder, cors_origins=(PAGE, "http://localhost:8888"), api_keys=("0123456789abcdef",))
    async with serving(settings) as client:
        preflight = await client.options("/predict", headers={"Origin": PAGE, **PREFLIGHT})  # without a key
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        allowed = preflight.headers["access-control-allow-headers"].lower()
        for header in ("authorization", "content-type", "x-request-timeout", "inference-header-content-length"):
            assert header in allowed
        key = {"Authorization": "Bearer 0123456789abcdef"}
        for headers, status in ((key, 200), ({}, 401)):  # errors, too, can be read
            reply = await client.get("/mice", headers={"Origin": PAGE, **headers})
            assert reply.status_code == status
            assert reply.headers["access-control-allow-origin"] == PAGE
            assert "access-control-allow-credentials" not in reply.headers
            exposed = reply.headers["access-control-expose-headers"]
            for header in ("V1T-Reply", "X-Request-Id", "Retry-After"):
                assert header in exposed
        other = {"Origin": "https://elsewhere.example", **key}
        assert "access-control-allow-origin" not in (await client.get("/mice", headers=other)).headers
        assert (await client.options("/predict", headers={**other, **PREFLIGHT})).status_code == 400


@pytest.mark.parametrize("origins", ["lab.example.org", "https://lab.example.org/page", f"{PAGE},https://x/"])
def test_what_is_not_an_origin_is_refused(origins: str) -> None:
    with pytest.raises(SettingsError, match=r"V1T_CORS_ORIGINS is .*is not an origin"):
        Settings.from_environment({"V1T_CORS_ORIGINS": origins})
    assert Settings.from_environment({"V1T_CORS_ORIGINS": f"{PAGE}, *"}).cors_origins == (PAGE, "*")
