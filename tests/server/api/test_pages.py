"""The explorer's files over HTTP, behind proxies as well; and CORS."""

from __future__ import annotations

import gzip
import json
import re
import tomllib
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import yaml
from support.checkout import ROOT
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin

from server.settings import Settings, SettingsError

PAGE = "https://lab.example.org"
EXPLORER = ROOT / "server" / "explorer"
MODULE = r'(?:from|import)\s*"(\.[^"]+)"'
MOST_BYTES = 300_000  # of all files of the explorer, as they travel


def links(page: str) -> list[str]:
    return re.findall(r'(?:href|src)="([^"]*)"', re.sub(r"<base [^>]*>", "", page))


def base_of(page: str, url: str) -> str:
    found = re.search(r'<base href="([^"]*)"', page)
    return urljoin(url, found[1]) if found else url


# The explorer's files


async def test_both_pages_and_all_they_load_are_served_with_their_types(twin: TinyTwin) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    async with serving(cpu_settings(twin.folder)) as client:
        seen: set[str] = set()
        waiting = ["http://localhost/", "http://localhost/docs"]
        while waiting:
            url = waiting.pop()
            seen.add(url)
            reply = await client.get(url)
            assert reply.status_code == 200, url
            suffix = Path(httpx.URL(url).path).suffix or ".html"
            assert reply.headers["content-type"].startswith(types[suffix]), url
            assert "script-src 'self'" in reply.headers["content-security-policy"]
            found = links(reply.text) if suffix == ".html" else re.findall(MODULE, reply.text)
            waiting += [one for link in found if Path(one := urljoin(url, link)).suffix in types and one not in seen]
        modules = set(EXPLORER.rglob("*.js"))
        assert {f"http://localhost/explorer/{path.relative_to(EXPLORER).as_posix()}" for path in modules} <= seen


@pytest.mark.parametrize(("page", "main"), [("index.html", "main.js"), ("docs.html", "reference/main.js")])
def test_a_page_names_all_of_its_modules_so_that_they_load_at_once(page: str, main: str) -> None:
    needed, waiting = set[Path](), [EXPLORER / main]
    while waiting:
        module = waiting.pop()
        found = {(module.parent / name).resolve() for name in re.findall(MODULE, module.read_text())}
        waiting += found - needed
        needed |= found
    named = re.findall(r'rel="modulepreload" href="explorer/([^"]+)"', (EXPLORER / page).read_text())
    assert sorted(named) == sorted(path.relative_to(EXPLORER).as_posix() for path in needed)


def test_modules_import_only_their_own_folder_and_those_below() -> None:
    layers = ["reference", "views", "state", "drawing", "stimuli", "api", "statistics", "vendor"]
    for module in EXPLORER.glob("*/*.js"):
        for name in re.findall(MODULE, module.read_text()):
            folder = (module.parent / name).resolve().relative_to(EXPLORER).parts[0]
            below = layers[layers.index(module.parent.name) :]
            assert folder in [*below, "library.js"], f"{module.relative_to(EXPLORER)} imports {name}"


async def test_pages_hold_no_script_or_style_of_their_own(twin: TinyTwin) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        for path in ("/", "/docs"):
            reply = await client.get(path)
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", reply.text)
            assert not re.search(r"(src|href)=.https?:", reply.text)


def test_the_explorer_names_no_other_host() -> None:
    allowed = {"http://www.w3.org/2000/svg"}  # the namespace in figures
    for path in EXPLORER.rglob("*"):
        if path.suffix in (".js", ".css", ".html", ".svg") and "vendor" not in path.parts:
            assert set(re.findall(r"https?://[\w./-]+", path.read_text())) <= allowed, path


async def test_files_are_compressed_and_not_sent_again(twin: TinyTwin) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        plain = await client.get("/explorer/main.js", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        async with client.stream("GET", "/explorer/main.js", headers={"Accept-Encoding": "gzip, br"}) as reply:
            body = b"".join([part async for part in reply.aiter_raw()])
        assert reply.headers["content-encoding"] == "gzip"
        assert gzip.decompress(body) == plain.content == (EXPLORER / "main.js").read_bytes()
        again = await client.get("/explorer/main.js", headers={"If-None-Match": plain.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = await client.get("/explorer/main.js", headers={"If-None-Match": '"another"'})
        assert other.status_code == 200


async def test_the_whole_explorer_is_small_over_the_wire(twin: TinyTwin) -> None:
    files = [path for path in EXPLORER.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg", ".png")]
    async with serving(cpu_settings(twin.folder)) as client:
        total = 0
        for path in files:
            where = f"/explorer/{path.relative_to(EXPLORER).as_posix()}"
            async with client.stream("GET", where, headers={"Accept-Encoding": "gzip"}) as reply:
                total += sum([len(part) async for part in reply.aiter_raw()])
    print(f"the explorer: {len(files)} files, {total:,} bytes over the wire")
    assert total < MOST_BYTES


@pytest.mark.parametrize(
    "path",
    ["nothing.js", "../settings.py", "..%2fsettings.py", "vendor/fetch.mjs", "vendor/packages.json", "", "views/"],
)
async def test_other_files_are_not_served(twin: TinyTwin, path: str) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        assert (await client.get(f"/explorer/{path}")).status_code == 404


async def test_the_explorer_needs_no_key_and_has_no_limit(twin: TinyTwin) -> None:
    settings = cpu_settings(twin.folder, api_keys=("0123456789abcdef",), max_concurrent=1)
    async with serving(settings) as client:
        for path in ("/", "/docs", "/explorer/main.js"):
            assert (await client.get(path)).status_code == 200
        for path in ("/docs.json", "/mice", "/explorer/../mice"):
            assert (await client.get(path)).status_code == 401


def test_vendored_libraries_are_those_that_are_pinned() -> None:
    packages = json.loads((EXPLORER / "vendor" / "packages.json").read_text())
    files = {EXPLORER / "vendor" / name for package in packages[:-1] for name in package["files"].values()}
    assert files == set((EXPLORER / "vendor").glob("*.js"))
    for package in packages:
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package["integrity"])
        folder = ROOT if package.get("tests_only") else EXPLORER / "vendor"
        assert (folder / package["licence_file"]).is_file(), package["name"]


def test_the_explorer_is_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "explorer/**" in data["server"]
    assert "/server/**" in yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]


@pytest.mark.parametrize("removed", [True, False], ids=["the proxy removes it", "the proxy passes it on"])
@pytest.mark.parametrize("url", ["https://lab.example.org/twins", "https://lab.example.org/a/b/", PAGE])
async def test_behind_a_proxy_the_pages_and_the_document_name_the_public_url(
    twin: TinyTwin, url: str, removed: bool
) -> None:
    base = url.rstrip("/")
    prefix = base.removeprefix(PAGE)

    async def ask(client: httpx.AsyncClient, public: str) -> httpx.Response:
        """What a browser gets for a URL that the proxy serves."""
        assert public.startswith(base), public
        path = public.removeprefix(PAGE)
        return await client.get((path.removeprefix(prefix) or "/") if removed else path)

    async with serving(cpu_settings(twin.folder, public_url=url)) as client:
        for opened in (f"{base}/", base, f"{base}/docs"):  # a reader may leave the last slash out
            page = (await ask(client, opened)).text
            found = links(page)
            assert len(found) >= 5
            for link in found:
                assert (await ask(client, urljoin(base_of(page, opened), link))).status_code == 200
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
