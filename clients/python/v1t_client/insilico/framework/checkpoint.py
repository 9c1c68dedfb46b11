"""The work folder of an experiment: it keeps intermediate results, so that an interrupted run can resume."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.progress import Progress
from v1t_client._replacing import cannot_write

__all__ = ["Loop", "Work", "new_folder"]

_IDENTITY = "run.json"


class Work:
    """The intermediate results of a run, in the folder `OUTPUT.partial`; without an output nothing is kept.

    An experiment does its work in loops made by `resume`, which loads, saves and shows progress.

    Args:
        output: the folder of the final result; None: in memory only.
        quiet: show no progress.
        log: what an interrupted run must keep beside its arrays, as JSON values; saved with them.

    Attributes:
        log_before: the log of the run that is resumed.
    """

    def __init__(
        self, output: Path | None = None, *, quiet: bool = False, log: Callable[[], dict[str, Any]] = dict
    ) -> None:
        self.output = output
        self.quiet = quiet
        self.log_before: dict[str, Any] = {}
        self._log = log
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._identity: dict[str, Any] = {}

    @property
    def folder(self) -> Path | None:
        return None if self.output is None else self.output.with_name(f"{self.output.name}.partial")

    @property
    def seconds(self) -> float:
        """Run time so far, including that of interrupted runs."""
        return self._seconds_before + time.monotonic() - self._started

    def begin(self, identity: Mapping[str, Any], *, force: bool = False) -> bool:
        """Opens the folder. Returns True if there is an interrupted run to resume.

        Args:
            identity: what must be equal to resume a run, as JSON: experiment, parameters, model hash.
            force: discard an interrupted run, and later overwrite its result.

        Raises:
            InvalidArgument: the result exists already, or the folder belongs to a run of other parameters.
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
            self.log_before = before.pop("log", {})
            is_empty = [other.name for other in self.folder.iterdir()] == [_IDENTITY]  # refused before any work
            if before != self._identity and is_empty:
                self._seconds_before = 0.0
                self._write_identity()
                return False
            if before != self._identity:
                raise InvalidArgument(
                    "the work folder belongs to another, unfinished run",
                    got=f"{self.folder}, which differs in {', '.join(_differences(before, self._identity))}",
                    hint="Repeat that run's command to finish it, choose another name, or --force to discard it.",
                )
            return True
        self.folder.mkdir(exist_ok=True)
        self._write_identity()
        return False

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays that `save(name)` saved last, also in an interrupted run; None if there are none."""
        if self.folder is None or not (path := self.folder / f"{name}.npz").exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    def save(self, name: str, **arrays: Any) -> None:
        """Saves the arrays atomically: after an interruption `load` gives either these or those saved before."""
        if self.folder is None:
            return
        path = self.folder / f"{name}.npz"
        try:
            with path.with_suffix(".tmp").open("wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            path.with_suffix(".tmp").replace(path)
            self._write_identity()
        except OSError:
            path.with_suffix(".tmp").unlink(missing_ok=True)
            raise

    def progress(self, total: int, label: str, *, done: int = 0, at_most: bool = False) -> Progress:
        """A line with the time left, on stderr if it is a terminal; a context manager with `advance(n)`."""
        return Progress(total, done=done, shown=False if self.quiet else None, label=label, at_most=at_most)

    @contextmanager
    def resume(
        self,
        name: str,
        state: MutableMapping[str, Any],
        total: int,
        *,
        label: str = "",
        batch: int = 1,
        every: int = 1,
        counter: str | None = "done",
        at_most: bool = False,
    ) -> Iterator[Loop]:
        """A loop over positions 0 to total - 1 that resumes where an interrupted run stopped.

        Args:
            name: of the file that keeps the state.
            state: arrays that the loop computes. Those of an interrupted run replace them; they are saved on the way.
            total: number of positions.
            label: what the progress line shows; the name if left out.
            batch: positions per step.
            every: steps between two saves; the state is also saved after the last step.
            counter: the key that the number of finished positions is saved under; None: the one array of the state
                has a row per finished position.
            at_most: the caller may leave the loop before the last position.

        Example:
            >>> with work.resume("means", state := {"means": np.zeros(n)}, n, batch=32) as loop:   # doctest: +SKIP
            ...     for piece in loop:
            ...         state["means"][piece] = ...
        """
        saved = self.load(name)
        if saved is not None:
            state.update(saved)
        if counter is None:
            first = 0 if saved is None else len(next(iter(saved.values())))
        else:
            first = int(state.get(counter, 0))
        with self.progress(total, label or name, done=first, at_most=at_most) as bar:
            yield Loop(self, name, state, range(first, total, batch), every=every, counter=counter, bar=bar)

    def finish(self, made: Path) -> None:
        """Moves the folder `made`, which is inside the work folder, to the output, and removes the work folder."""
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
        content = {**self._identity, "seconds": round(self.seconds, 1), "log": self._log()}
        path.with_suffix(".tmp").write_text(json.dumps(content, indent=1), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)


class Loop:
    """Iterates over the positions that are left, in ranges, and saves the state on the way; see `Work.resume`."""

    def __init__(
        self,
        work: Work,
        name: str,
        state: Mapping[str, Any],
        positions: range,
        *,
        every: int,
        counter: str | None,
        bar: Progress,
    ) -> None:
        self._work, self._name, self._state, self._positions = work, name, state, positions
        self._every, self._counter, self._bar = every, counter, bar
        self._shown = positions.start

    def __iter__(self) -> Iterator[range]:
        total, batch = self._positions.stop, self._positions.step
        for step, start in enumerate(self._positions, start=1):
            piece = range(start, min(start + batch, total))
            yield piece
            self.advance(piece.stop - self._shown)
            if step % self._every == 0 or piece.stop == total:
                done = {} if self._counter is None else {self._counter: piece.stop}
                self._work.save(self._name, **{**self._state, **done})

    def advance(self, n: int) -> None:
        """Moves the progress line within a range that takes long."""
        self._bar.advance(n)
        self._shown += n


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary path for a new folder, renamed to `output` at the end: the folder appears complete or not at all.

    Raises:
        InvalidArgument: it cannot be written.
    """
    made = output.with_name(f"{output.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    try:
        yield made
        made.rename(output)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(error, output) from error
        raise


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the parameters and other parts of the identity that differ."""
    a, b = ({**identity, **identity.get("parameters", {}), "parameters": None} for identity in (before, now))
    return [name for name in {**a, **b} if a.get(name) != b.get(name)]
