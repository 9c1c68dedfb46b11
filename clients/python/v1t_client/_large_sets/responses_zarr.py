"""A Zarr folder of responses, written chunk by chunk in any order, and resumed after an interruption at any moment.

    responses.zarr.part/       the name until it is complete
      responses/ spread/       (B, n) float32, a file per chunk
      neuron/ image/           coordinates: neuron ids, and file names where they are known
      .v1t/request.json        which twin answers which question; only the same question resumes
      .v1t/12.json             what the server said about the images of chunk 12

A chunk is done if its files are there with all their bytes: they are written beside, flushed to the disk and renamed,
that of `responses` last. No other record could contradict them. Each image is therefore in the result once, whatever
was killed when. It is Zarr version 2 without compression, which all readers know, such as `xarray.open_zarr`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from v1t_client._answers.notes import Note, merged
from v1t_client._answers.prediction import Prediction
from v1t_client._errors import InvalidArgument
from v1t_client._replacing import cannot_write

__all__ = ["ResponsesZarr"]

_STATE = ".v1t"
_REQUEST = "request"  # in the attributes
_KEPT = "Finished chunks are kept: free disk space, and repeat the call to resume."


class ResponsesZarr:
    """Opens the folder for writing, or resumes it.

    Args:
        path: the folder to write.
        request: what identifies the prediction, as JSON values.
        attributes: more attributes of the result.
        neuron_ids: (n,).
        names: (B,) file names, or empty.
        force: start from the beginning, and replace an existing folder.

    Attributes:
        is_complete: an earlier call has finished this very prediction.
        attributes: of the result, once it is complete.
        missing: numbers of the chunks that are to be done.

    Raises:
        InvalidArgument: another prediction is there, or another process writes it.
    """

    def __init__(
        self,
        path: Path,
        *,
        request: Mapping[str, Any],
        attributes: Mapping[str, Any],
        n_images: int,
        chunk: int,
        neuron_ids: npt.NDArray[np.int64],
        names: Sequence[str],
        spread: bool,
        force: bool,
    ) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._state = self._part / _STATE
        self._request, self.attributes = dict(request), dict(attributes)
        self._n_images, self._chunk, self._neuron_ids, self._names = n_images, chunk, neuron_ids, names
        self._arrays = ("spread", "responses") if spread else ("responses",)
        self._lock: BinaryIO | None = None
        self.missing: list[int] = []
        self.is_complete = not force and path.exists() and self._is_finished()
        if self.is_complete:
            return
        if not path.parent.is_dir():
            raise InvalidArgument("output is in a folder that does not exist", got=path)
        try:
            self._begin(force=force)
        except OSError as error:
            self.close()
            raise cannot_write(error, path, _KEPT) from error
        except InvalidArgument:
            self.close()
            raise
        self.missing = [i for i in range(self.n_chunks) if not self._is_done(i)]

    def __enter__(self) -> ResponsesZarr:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def n_chunks(self) -> int:
        return -(-self._n_images // self._chunk)

    def rows(self, chunk: int) -> slice:
        """The images of a chunk."""
        return slice(chunk * self._chunk, min((chunk + 1) * self._chunk, self._n_images))

    def add(self, chunk: int, prediction: Prediction) -> None:
        """Writes the responses of a chunk. They survive any later failure.

        Raises:
            InvalidArgument: they cannot be written.
        """
        about = {
            "state": prediction.state,
            "assumed": prediction.assumed,
            "notes": [asdict(note) for note in prediction.notes],
        }
        try:
            _write(self._state / f"{chunk}.json", _json(about))
            for name in self._arrays:
                rows = np.zeros((self._chunk, len(self._neuron_ids)), "<f4")  # the last chunk is filled up
                rows[: len(prediction)] = getattr(prediction, name)
                _write(self._part / name / f"{chunk}.0", rows.tobytes(), flush=True)
        except OSError as error:
            raise cannot_write(error, self.path, _KEPT) from error

    def finish(self) -> dict[str, Any]:
        """Writes the attributes, gives the folder its name, and returns the attributes.

        Raises:
            InvalidArgument: it cannot be written.
        """
        try:
            about = [json.loads((self._state / f"{i}.json").read_text()) for i in range(self.n_chunks)]
            self.attributes |= {
                "state": next((one["state"] for one in about if one["state"]), None),
                "assumed": list(dict.fromkeys(line for one in about for line in one["assumed"])),
                "notes": [asdict(n) for n in merged(Note(**note) for one in about for note in one["notes"])],
                _REQUEST: self._request,
            }
            self._write_metadata()
            for left in self._part.glob("*/.*.part"):
                left.unlink()
            if self.path.exists():  # with `force`
                shutil.rmtree(self.path)
            self._part.rename(self.path)
            self._remove_state()
        except OSError as error:
            raise cannot_write(error, self.path, _KEPT) from error
        return self.attributes

    def _begin(self, *, force: bool) -> None:
        if self.path.exists() and not force:
            raise InvalidArgument(
                "output exists already, and is another prediction" if self._differ else "output exists already",
                got=f"{self.path}{self._differ}",
                hint="Choose another name, or add force.",
            )
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = (self._state / "lock").open("ab")
        _lock(self._lock, self._part)
        path = self._state / "request.json"
        found = _read(path)
        if force or found is None:
            for name in (*self._arrays, "neuron", "image"):
                shutil.rmtree(self._part / name, ignore_errors=True)
            for record in self._state.glob("*.json"):
                record.unlink()
            for name in self._arrays:
                (self._part / name).mkdir()
            _write(path, _json(self._request), flush=True)
        elif different := _differences(found, self._request):
            raise InvalidArgument(
                "output belongs to another, unfinished prediction",
                got=f"{self._part}{different}",
                hint="Repeat that call to finish it, or add force to start from the beginning.",
            )
        for name in self._arrays:
            (self._part / name).mkdir(exist_ok=True)

    def _is_finished(self) -> bool:
        self._differ = ""
        attributes = _read(self.path / ".zattrs") or {}
        if _REQUEST not in attributes:
            return False
        self._differ = _differences(attributes[_REQUEST], self._request)
        if not self._differ:
            self.attributes = attributes
            self._remove_state()  # a call that was killed at its very end may have left it
        return not self._differ

    def _remove_state(self) -> None:
        shutil.rmtree(self.path / _STATE, ignore_errors=True)

    def _is_done(self, chunk: int) -> bool:
        whole = 4 * self._chunk * len(self._neuron_ids)
        with suppress(OSError):
            sizes = {(self._part / name / f"{chunk}.0").stat().st_size for name in self._arrays}
            return sizes == {whole} and _read(self._state / f"{chunk}.json") is not None
        return False

    def _write_metadata(self) -> None:
        """The metadata of the group and its arrays, and the coordinates."""
        shape, chunks = (self._n_images, len(self._neuron_ids)), (self._chunk, len(self._neuron_ids))
        arrays: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...], str, dict[str, Any]]] = {
            name: (("image", "neuron"), shape, chunks, "<f4", {"units": self.attributes.get("units")})
            for name in self._arrays
        }
        coordinates: dict[str, npt.NDArray[Any]] = {"neuron": self._neuron_ids.astype("<i8")}
        if len(self._names):
            coordinates["image"] = np.array(self._names).astype("<U")
        for name, values in coordinates.items():
            arrays[name] = ((name,), values.shape, values.shape, values.dtype.str, {})
            (self._part / name).mkdir(exist_ok=True)
            _write(self._part / name / "0", values.tobytes())
        all_metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": self.attributes}
        for name, (dims, shape_, chunks_, dtype, attributes) in arrays.items():
            all_metadata[f"{name}/.zarray"] = {
                "zarr_format": 2,
                "shape": shape_,
                "chunks": chunks_,
                "dtype": dtype,
                "compressor": None,
                "filters": None,
                "fill_value": None,
                "order": "C",
                "dimension_separator": ".",
            }
            all_metadata[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": dims, **attributes}
        for name, content in all_metadata.items():
            _write(self._part / name, _json(content))
        _write(self._part / ".zmetadata", _json({"zarr_consolidated_format": 1, "metadata": all_metadata}))


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it is missing or was not written completely."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, content: bytes, *, flush: bool = False) -> None:
    """Writes the file whole or not at all."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            if flush:
                stream.flush()
                os.fsync(stream.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`: model is 'a', not 'b'; ...`; empty if they are equal."""
    wanted = json.loads(json.dumps(wanted))
    names = [name for name in dict.fromkeys((*found, *wanted)) if found.get(name) != wanted.get(name)]
    return ": " + "; ".join(f"{n} was {found.get(n)!r}, not {wanted.get(n)!r}" for n in names) if names else ""


def _lock(stream: BinaryIO, path: Path) -> None:
    """Refuses a second process; where the system has no such locks, both would write the same bytes."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidArgument("another process is writing this output", got=path, hint="Wait for its end.") from None
