"""Opens a predictor: a server by its URL, or a bundle on a private server of this machine."""

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

_PATIENCE = 180.0  # seconds to load a bundle
_LOADING_RETRY_AFTER = 5.0  # seconds; a server that asks for more patience has refused the bundle
_ASIDE = ("V1T_BUNDLES", "V1T_API_KEYS", "V1T_API_KEYS_FILE", "V1T_URL", "V1T_API_KEY", "V1T_HOME")


@contextmanager
def open_predictor(
    where: str | os.PathLike[str], *, api_key: str | None = None, timeout: float = 60.0, retries: int = 3
) -> Iterator[Client]:
    """A `Client`, of the server at a URL, or of a private server that serves one bundle and stops on leaving.

    The private server is `bentoml serve` of the checkout that the bundle or the working folder lies in, or that
    V1T_HOME names; it listens on a free port of the loopback interface. V1T_PROVIDER, V1T_THREADS and so on reach it.

    Args:
        where: "http://..." or the folder of a bundle.
        api_key, timeout, retries: see `Client`.

    Raises:
        InvalidArgument: neither a URL nor a bundle; or no server package to serve it with.
        NotReady: the private server refused the bundle, or did not come up; says why.

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
    """The checkout whose server can serve the bundle."""
    named = os.environ.get("V1T_HOME")
    starts = [Path(named)] if named else [bundle, Path.cwd()]
    for start in starts:
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / "bentofile.yaml").is_file() and (folder / "server" / "service.py").is_file():
                return folder
    raise InvalidArgument(
        "no server package was found to open this bundle with",
        got=f"{named or bundle}",
        expected="a checkout of the project (with bentofile.yaml) above the bundle or the working folder",
        hint="Set V1T_HOME to the checkout, or start the server there and give its URL.",
    )


def _python(home: Path) -> str:
    """An interpreter that has BentoML: this one, or that of `make serve` or `make install`."""
    if importlib.util.find_spec("bentoml") is not None:
        return sys.executable
    for environment in (".venv-serve", ".venv"):
        for python in (home / environment / "bin" / "python", home / environment / "Scripts" / "python.exe"):
            if python.is_file():
                return str(python)
    raise InvalidArgument(
        "the server's packages are not installed",
        got=f"no bentoml for {sys.executable}, and no environment in {home}",
        hint=f"`make serve` in {home} installs them once; or give a server's URL.",
    )


@contextmanager
def _serving(bundle: Path, home: Path, place: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in _ASIDE}
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
    """Until the bundle is loaded; what is refused is said at once, in the server's words."""
    deadline = time.monotonic() + _PATIENCE
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
        f"the private server of {bundle.name!r} did not come up in {_PATIENCE:g} s"
        if process.poll() is None
        else f"the private server of {bundle.name!r} stopped",
        status=503,
        code="not_ready",
        hint=f"The end of its log:\n  {end}",
    )
