"""The work folder of a run: what an interrupted run leaves for the next, and how a finished one takes its place."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed

__all__ = ["Work"]

_IDENTITY = "run.json"


class Work:
    """Where a run keeps what it has so far, `OUTPUT.partial`; without a folder it keeps nothing.

    An experiment calls `load` first, goes on from what that gives, calls `save` after every piece that would hurt to
    lose, and shows `progress`. It need not know whether it was interrupted before.

    Args:
        output: the folder that the result will have; None: in memory only.
        quiet: show no progress.
    """

    def __init__(self, output: Path | None = None, *, quiet: bool = False) -> None:
        self.output = output
        self.quiet = quiet
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._identity: dict[str, Any] = {}

    @property
    def folder(self) -> Path | None:
        return None if self.output is None else self.output.with_name(f"{self.output.name}.partial")

    @property
    def seconds(self) -> float:
        """From the start, over all sittings."""
        return self._seconds_before + time.monotonic() - self._started

    def begin(self, identity: Mapping[str, Any], *, force: bool = False) -> bool:
        """Takes up the folder; True if an earlier run left something in it.

        Args:
            identity: what has to be equal for a run to go on: experiment, parameters, model hash. JSON.
            force: throw away what an earlier run left, and later overwrite its result.

        Raises:
            InvalidArgument: the result is there already, or another run is unfinished there.
        """
        if self.output is None or self.folder is None:
            return False
        if self.output.exists() and not force:
            raise InvalidArgument(
                "the output exists already", got=self.output, hint="Choose another name, or add --force (force=True)."
            )
        if not self.output.parent.is_dir():
            raise InvalidArgument("the output is in a folder that does not exist", got=self.output)
        path = self.folder / _IDENTITY
        self._identity = json.loads(json.dumps(identity))
        if force and self.folder.exists():
            shutil.rmtree(self.folder)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self._seconds_before = float(before.pop("seconds", 0.0))
            nothing = [other.name for other in self.folder.iterdir()] == [_IDENTITY]  # it was refused before any work
            if before != self._identity and nothing:
                self._seconds_before = 0.0
                self._write_identity()
                return False
            if before != self._identity:
                different = sorted(
                    key for key in {*before, *self._identity} if before.get(key) != self._identity.get(key)
                )
                raise InvalidArgument(
                    "another run is unfinished in this place",
                    got=f"{self.folder}, which differs in {', '.join(_differences(before, self._identity, different))}",
                    hint="Repeat that run's command to finish it, choose another name, or --force to throw it away.",
                )
            return True
        self.folder.mkdir(exist_ok=True)
        self._write_identity()
        return False

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What `save(name)` saved last, also in an earlier sitting."""
        if self.folder is None or not (path := self.folder / f"{name}.npz").exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    def save(self, name: str, **arrays: Any) -> None:
        """Keeps the arrays: after an interruption either these are there or those saved before, never half of them."""
        if self.folder is None:
            return
        path = self.folder / f"{name}.npz"
        with path.with_suffix(".tmp").open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        path.with_suffix(".tmp").replace(path)
        self._write_identity()

    def progress(self, total: int, what: str, *, done: int = 0) -> Any:
        """A tqdm bar on stderr, as a context manager with `update(n)`."""
        return needed("tqdm").tqdm(
            total=total, initial=done, desc=what, disable=self.quiet, unit="", dynamic_ncols=True, leave=False
        )

    def finish(self, made: Path) -> None:
        """Puts the folder `made`, which lies in this work folder, in the output's place, and removes the rest."""
        assert self.output is not None
        assert self.folder is not None
        old = self.output.with_name(f"{self.output.name}.old")
        if self.output.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.output.rename(old)
        made.rename(self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    def _write_identity(self) -> None:
        assert self.folder is not None
        path = self.folder / _IDENTITY
        content = {**self._identity, "seconds": round(self.seconds, 1)}
        path.with_suffix(".tmp").write_text(json.dumps(content, indent=1), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], keys: list[str]) -> list[str]:
    """Which parameters differ, by name."""
    names: list[str] = []
    for key in keys:
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += [name for name in {**a, **b} if a.get(name) != b.get(name)]
        else:
            names.append(key)
    return names
