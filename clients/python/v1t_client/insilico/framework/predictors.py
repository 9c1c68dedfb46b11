"""Opens a predictor: a server by its URL, or a bundle, in this process or with a private server on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from v1t_client._client import Client
from v1t_client._errors import ConnectionFailed, InvalidArgument, NotReady, TimedOut
from v1t_client._protocol.in_process import URL, InProcessTransport

__all__ = ["NOT_INHERITED", "open_predictor"]

_ENTRY_POINT = "v1t_client.in_process"
_MODULE, _FUNCTION = "server.in_process", "open_bundle"  # the same in a checkout that is not installed
_LOADING_TIMEOUT = 180.0  # seconds to load a bundle
_LOADING_RETRY_AFTER = 5.0  # seconds; a server whose Retry-After is longer has refused the bundle
NOT_INHERITED = ("V1T_BUNDLES", "V1T_API_KEYS", "V1T_API_KEYS_FILE", "V1T_URL", "V1T_API_KEY", "V1T_HOME")
# A server that ends with the process that started it, however that ends: the system closes its end of the pipe. Ray
# kills the children of its workers as well; on Linux the server then gets a signal.
_UNTIL_STDIN_CLOSES = """
import ctypes, signal, subprocess, sys, threading
def end_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
def end():
    sys.stdin.buffer.read()
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
threading.Thread(target=end, daemon=True).start()
sys.exit(server.wait())
"""


@contextmanager
def open_predictor(
    where: str | os.PathLike[str], *, api_key: str | None = None, timeout: float = 60.0, retries: int = 3
) -> Iterator[Client]:
    """A `Client` of the server at a URL, or of one bundle until the end of the block.

    A bundle is answered for in this process if the server's packages are installed here: by the server that is
    installed in this environment, or else by that of the checkout that contains the bundle or the working directory. If
    V1T_HOME names a checkout, it is that one. Requests take the same way as over HTTP, and have the same answers,
    limits and errors. The engine has its own threads, which end with the block, and inherits V1T_PROVIDER,
    V1T_THREADS etc. A forked process (`multiprocessing` with "fork") cannot use it, and has to open the bundle itself.

    If another environment of the checkout has the packages (`make serve` makes one), a private server runs there: a
    `bentoml serve` on a free port of the loopback interface, which stops at the end of the block.

    Args:
        where: "http://..." or the folder of a bundle.
        api_key, timeout, retries: see `Client`.

    Raises:
        InvalidArgument: neither a URL nor a bundle, or there is no server package to serve the bundle with.
        NotReady: the bundle was refused, or the private server did not start; the message has the reason.

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
    open_bundle = _installed() or _in_checkout(_home(bundle))
    if open_bundle is not None:
        with closing(_opened(open_bundle, bundle)) as server:
            with Client(URL, timeout=timeout, retries=0, transport=InProcessTransport(server)) as client:
                client.mice()  # raises NotReady with the reason if the bundle was refused
            with Client(URL, timeout=timeout, retries=retries, transport=InProcessTransport(server)) as client:
                yield client
        return
    home = _home(bundle)
    with tempfile.TemporaryDirectory(prefix="v1t-") as place, _serving(bundle, home, Path(place)) as (url, process):
        _wait(url, process, Path(place) / "log", bundle)
        with Client(url, timeout=timeout, retries=retries) as client:
            yield client


def _opened(open_bundle: Callable[[Path], Any], bundle: Path) -> Any:
    try:
        return open_bundle(bundle)
    except ValueError as error:
        raise InvalidArgument(f"a setting of the environment is wrong: {error}") from error


def _installed() -> Callable[[Path], Any] | None:
    """What opens a bundle in this process, by the server that is installed here."""
    if os.environ.get("V1T_HOME"):
        return None
    for found in entry_points(group=_ENTRY_POINT):
        try:
            return found.load()
        except ImportError:  # installed without the packages that it needs
            continue
    return None


def _in_checkout(home: Path) -> Callable[[Path], Any] | None:
    """The same by the server of a checkout, if Python finds everything that it imports."""
    before = set(sys.modules)
    sys.path.insert(0, str(home))
    try:
        module = importlib.import_module(_MODULE)
    except ImportError:
        package = _MODULE.partition(".")[0]
        for name in set(sys.modules) - before:  # leaves the name to a package of the caller's own
            if name.partition(".")[0] == package:
                del sys.modules[name]
        return None
    finally:
        sys.path.remove(str(home))
    is_of_checkout = Path(str(module.__file__)).resolve().is_relative_to(home.resolve())
    return getattr(module, _FUNCTION) if is_of_checkout else None


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
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environment |= {"V1T_BUNDLES": str(bundle), "BENTOML_HOME": str(place / "bentoml")}
    python = _python(home)
    server = [python, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-c", _UNTIL_STDIN_CLOSES, *server],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends this program first, which then ends the server
        )
    assert process.stdin is not None
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.stdin.close()
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
