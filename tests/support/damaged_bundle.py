"""Damages a bundle in one random way, as a bad disk, a broken copy or a hostile author would."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data
from support.tiny_bundle import TinyTwin

from server.bundle.manifest import MANIFEST, hash_file

__all__ = ["damage"]

# Values that no field of a manifest may have, whatever its type.
_WRONG: tuple[Any, ...] = (float("nan"), float("inf"), -1e400, {"a": {"b": []}}, [[[]]], [None])
_FREE = frozenset({"configs", "scores", "percentiles", "seeds", "data_hashes", "versions"})  # hold any key or entry


def damage(twin: TinyTwin, rng: np.random.Generator) -> str:
    """Damages the bundle; returns what was done, in words, after the name of the file that must be refused."""
    kinds: tuple[Callable[[TinyTwin, np.random.Generator], str], ...] = (
        _wrong_value,
        _missing_field,
        _bytes_of_the_manifest,
        _bytes_of_a_file,
        _another_kind_of_file,
        _neurons,
        _graph,
    )
    return kinds[rng.integers(len(kinds))](twin, rng)


# The manifest


def _wrong_value(twin: TinyTwin, rng: np.random.Generator) -> str:
    content = _read(twin)
    # An error of parity that is not measured yet is infinite.
    holder, key = _pick(rng, [(holder, key) for holder, key in _fields(content) if key != "max_abs_error"])
    holder[key] = wrong = _WRONG[rng.integers(len(_WRONG))]
    _write(twin, content)
    return f"{MANIFEST}: {key} became {wrong!r}"


def _missing_field(twin: TinyTwin, rng: np.random.Generator) -> str:
    content = _read(twin)
    required = ("schema_version", "name", "members", "configs", "cores", "mice", "provenance", "licence", "citation")
    of_mouse = ("mouse_id", "mouse_index", "image_shape", "behavior", "uses", "n_neurons", "neurons", "stems", "parity")
    places = [(content, key) for key in required]
    places += [(mouse, key) for mouse in content["mice"].values() for key in of_mouse]
    holder, key = _pick(rng, places)
    if rng.integers(2):
        del holder[key]
    else:
        holder[f"{key}_"] = holder[key]
    _write(twin, content)
    return f"{MANIFEST}: without {key}, or with {key}_"


def _bytes_of_the_manifest(twin: TinyTwin, rng: np.random.Generator) -> str:
    path = twin.folder / MANIFEST
    content = path.read_bytes()
    depth = 200_000
    others = (
        b"",
        b"null",
        b"[1, 2]",
        b'{"schema_version": 1}',
        b'{"a":' * depth + b"1" + b"}" * depth,
        b"[" * depth,
        content[: rng.integers(1, len(content) - 1)],
        b"\xff\xfe" + content,
        content + content,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 20051\n",
    )
    path.write_bytes(others[rng.integers(len(others))])
    return f"{MANIFEST}: other bytes"


def _fields(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) whose value has a type."""
    items = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in items:
        yield content, key
        if isinstance(value, dict | list) and key not in _FREE:
            yield from _fields(value)


def _read(twin: TinyTwin) -> Any:
    return json.loads((twin.folder / MANIFEST).read_text())


def _write(twin: TinyTwin, content: Any) -> None:
    (twin.folder / MANIFEST).write_text(json.dumps(content))


def _pick(rng: np.random.Generator, places: list[Any]) -> Any:
    return places[rng.integers(len(places))]


# The files


def _bytes_of_a_file(twin: TinyTwin, rng: np.random.Generator) -> str:
    name = _pick(rng, [file.path for file in twin.manifest.files()])
    path = twin.folder / name
    content = bytearray(path.read_bytes())
    match rng.integers(4):
        case 0:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        case 1:
            del content[rng.integers(len(content)) :]
        case 2:
            content += bytes(int(rng.integers(1, 10_000)))
        case _:
            content = bytearray(rng.bytes(len(content)))
    path.write_bytes(content)
    return f"{name}: other bytes"


def _another_kind_of_file(twin: TinyTwin, rng: np.random.Generator) -> str:
    name = _pick(rng, [MANIFEST, *(file.path for file in twin.manifest.files())])
    path = twin.folder / name
    path.unlink()
    match rng.integers(5):
        case 0:
            pass
        case 1:
            path.mkdir()
        case 2:
            os.mkfifo(path)
        case 3:
            path.symlink_to("/dev/zero")
        case _:
            path.symlink_to("nowhere")
    return f"{name}: another kind of file, or none"


def _promise(twin: TinyTwin, name: str) -> None:
    """Writes the hash and size of a file into the manifest, so that only its contents are wrong."""
    content = _read(twin)
    path = twin.folder / name

    def visit(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("path") == name:
                part.update(sha256=hash_file(path), bytes=path.stat().st_size)
            for value in part.values():
                visit(value)
        elif isinstance(part, list):
            for value in part:
                visit(value)

    visit(content)
    _write(twin, content)


def _neurons(twin: TinyTwin, rng: np.random.Generator) -> str:
    mouse = twin.manifest.mice["A"]
    path = twin.folder / mouse.neurons.path
    with np.load(path) as stored:
        arrays: dict[str, Any] = dict(stored)
    n = mouse.n_neurons
    changes: tuple[dict[str, Any], ...] = (
        {"ids": np.zeros(n, np.int64)},
        {"ids": arrays["ids"].astype(np.float32) + 0.5},
        {"ids": arrays["ids"][:-1]},
        {"ids": np.array(["a"] * n)},
        {"ids": arrays["ids"][:, None]},
        {"coordinates": arrays["coordinates"][:, 0]},
        {"coordinates": arrays["coordinates"][:, :2]},
        {"coordinates": np.full((n, 3), np.inf, np.float32)},
        {"coordinates": np.array(["a"] * n)},
        {"response_std": -np.ones(n, np.float32)},
        {"response_std": np.full(n, np.inf, np.float32)},
        {"response_std": np.ones((n, 2), np.float32)},
        {"score.single_trial_correlation": np.ones((n, 1), np.float32)},
        {"score.single_trial_correlation": np.full(n, np.inf, np.float32)},
        {"ids": None},
        {"coordinates": None},
        {"response_std": None},
    )
    kind = int(rng.integers(len(changes) + 3))
    if kind < len(changes):
        changed = {name: array for name, array in {**arrays, **changes[kind]}.items() if array is not None}
        np.savez(path, **changed)
    elif kind == len(changes):
        path.write_bytes(rng.bytes(1000))
    else:  # a header that claims far more than there is, or zeros that unpack to a thousand times their size
        claimed = (10**12,) if kind == len(changes) + 1 else (10**8,)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {"descr": "<f4", "fortran_order": False, "shape": claimed},  # type: ignore[arg-type]
        )
        np.savez(path, **{name: array for name, array in arrays.items() if name != "response_std"})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("response_std.npy", "w") as out:
            out.write(header.getvalue())
            for _ in range(40 if claimed == (10**8,) else 0):
                out.write(bytes(10**7))
    _promise(twin, mouse.neurons.path)
    return f"{mouse.neurons.path}: arrays of kind {kind}"


def _graph(twin: TinyTwin, rng: np.random.Generator) -> str:
    mouse = twin.manifest.mice["A"]
    name, other = mouse.stems[0].path, mouse.readouts[0].path
    path = twin.folder / name
    kind = int(rng.integers(6))
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.write_bytes(rng.bytes(500))
    elif kind == 2:
        shutil.copy(twin.folder / other, path)
    else:  # its weights lie in a file that the manifest does not name
        model = onnx.load(path)
        secret = twin.folder.parent / "secret.bin"
        secret.write_bytes(bytes(4096))
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "image_mean")
        tensor.raw_data = tensor.raw_data  # which must be raw to be external
        location = ("../secret.bin", str(secret), "unnamed.bin")[kind - 3]
        (twin.folder / "unnamed.bin").write_bytes(bytes(4096))
        set_external_data(tensor, location=location, offset=0, length=len(tensor.raw_data))
        tensor.ClearField("raw_data")
        path.write_bytes(model.SerializeToString())
    _promise(twin, name)
    return f"{name}: graph of kind {kind}"
