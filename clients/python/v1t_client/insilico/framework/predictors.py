"""Opens a predictor: a server by its URL, or a bundle with a private server on this machine."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from v1t_client._client import Client
from v1t_client._errors import ConnectionFailed, InvalidArgument, NotReady, TimedOut

__all__ = ["open_predictor"]

_LOADING_TIMEOUT = 180.0  # seconds to load a bundle
_LOADING_RETRY_AFTER = 5.0  # seconds; a server whose Retry-After is longer has refused the bundle
_NOT_INHERITED = ("V1T_BUNDLES", "V1T_API_KEYS", "V1T_API_KEYS_FILE", "V1T_URL", "V1T_API_KEY", "V1T_HOME")


@contextmanager
def open_predictor(
    where: str | os.PathLike[str], *, api_key: str | None = None, timeout: float = 60.0, retries: int = 3
) -> Iterator[Client]:
    """A `Client` of the server at a URL, or of a private server for one bundle that stops at the end of the block.

    The private server is `bentoml serve` in the checkout that contains the bundle or the working directory, or that
    V1T_HOME names. It listens on a free port of the loopback interface, and inherits V1T_PROVIDER, V1T_THREADS etc.

    Args:
        where: "http://..." or the folder of a bundle.
        api_key, timeout, retries: see `Client`.

    Raises:
        InvalidArgument: neither a URL nor a bundle, or there is no server package to serve the bundle with.
        NotReady: the private server refused the bundle or did not start; the message has the reason.

    Example:
        >>> with open_predictor("exported_models/demo") as twin:                 # doctest: +SKIP
        ...     twin.predict("SIM1", "image.png")
    """
    text = os.fspath(where)
    if text.startswith(("http://", "https://")):
        with Client(text, api_key=api_key, timeout=timeout, retries=retries) as client:
            yield client
        return
    bundle = Path(text).resolve()
    if not (bundle / "manifest.json").is_file():
        raise InvalidArgument(
            "this is neither a URL nor a bundle", got=text, expected="http://..., or a folder with a manifest.json"
        )
    home = _home(bundle)
    with tempfile.TemporaryDirectory(prefix="v1t-") as place, _serving(bundle, home, Path(place)) as (url, process):
        _wait(url, process, Path(place) / "log", bundle)
        with Client(url, timeout=timeout, retries=retries) as client:
            yield client


def _home(bundle: Path) -> Path:
    """The checkout whose server serves the bundle."""
    named = os.environ.get("V1T_HOME")
    starts = [Path(named)] if named else [bundle, Path.cwd()]
    for start in starts:
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / "bentofile.yaml").is_file() and (folder / "server" / "service.py").is_file():
                return folder
    raise InvalidArgument(
        "no server package to serve this bundle with",
        got=f"{named or bundle}",
        expected="a checkout of the project (with bentofile.yaml) that contains the bundle or the working directory",
        hint="Set V1T_HOME to the checkout, or start the server there and use its URL.",
    )


def _python(home: Path) -> str:
    """A Python interpreter with BentoML: this one, or that of `make serve` or `make install`."""
    if importlib.util.find_spec("bentoml") is not None:
        return sys.executable
    for environment in (".venv-serve", ".venv"):
        for python in (home / environment / "bin" / "python", home / environment / "Scripts" / "python.exe"):
            if python.is_file():
                return str(python)
    raise InvalidArgument(
        "the server's packages are not installed",
        got=f"no bentoml for {sys.executable}, and no environment in {home}",
        hint=f"`make serve` in {home} installs them; or use the URL of a server.",
    )


@contextmanager
def _serving(bundle: Path, home: Path, place: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment |= {"V1T_BUNDLES": str(bundle), "BENTOML_HOME": str(place / "bentoml")}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [_python(home), "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, bundle: Path) -> None:
    """Waits until the bundle is loaded. A refusal is raised at once, with the server's message."""
    deadline = time.monotonic() + _LOADING_TIMEOUT
    with Client(url, retries=0, timeout=5.0) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.mice()
                return
            except NotReady as error:
                if (error.retry_after or 0) > _LOADING_RETRY_AFTER:
                    raise
            except (ConnectionFailed, TimedOut):
                pass
            time.sleep(0.1)
    end = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
    raise NotReady(
        f"the private server of {bundle.name!r} did not start within {_LOADING_TIMEOUT:g} s"
        if process.poll() is None
        else f"the private server of {bundle.name!r} stopped",
        status=503,
        code="not_ready",
        hint=f"The end of its log:\n  {end}",
    )
