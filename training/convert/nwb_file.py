"""An NWB file that is open: its objects by path, and their samples and times."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.convert.extras import needed
from training.errors import RecordingError
from training.file_kinds import head_of, kind_of
from training.tables import counted

__all__ = ["NwbFile", "listed", "open_nwb", "samples", "times_of"]

LISTED = 8


@dataclass(frozen=True, eq=False)
class NwbFile:
    """An open file.

    Attributes:
        nwb: the `pynwb.NWBFile`.
        objects: path -> object, such as "ophys/Fluorescence/RoiResponseSeries", without the file's own groups
            ("processing", "stimulus", ...).
    """

    path: Path
    nwb: Any
    objects: dict[str, Any]

    def find(self, path: str, kind: str) -> Any:
        """The object at a path, or the only one of this name.

        Raises:
            RecordingError: there is none, or there are several; the message lists those of this kind.
        """
        base = needed("pynwb", extra="nwb")
        types = {"series": (base.TimeSeries,), "images": (base.base.Images, base.TimeSeries), "table": ()}[kind]
        found = {
            name: one
            for name, one in self.objects.items()
            if (isinstance(one, types) if types else hasattr(one, "colnames"))
        }
        if path in found:
            return found[path]
        ends = [name for name in found if name.rpartition("/")[2] == path]
        if len(ends) == 1:
            return found[ends[0]]
        raise RecordingError(
            f"{self.path.name} has {'several' if ends else 'no'} {kind} {path!r}",
            got=listed(ends or list(found)),
            hint="Write its whole path in the mapping." if ends else None,
        )

    def path_of(self, one: Any) -> str:
        return next(name for name, other in self.objects.items() if other is one)


def listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more


@contextmanager
def open_nwb(path: Path) -> Iterator[NwbFile]:
    """Opens a file of NWB 2.

    Raises:
        RecordingError: it is missing, or another kind of file; the message says which.
    """
    pynwb = needed("pynwb", extra="nwb")
    if not path.is_file():
        raise RecordingError(f"{path} is not a file" if path.exists() else f"{path} does not exist", expected=".nwb")
    kind = kind_of(head_of(path))
    if kind is None or kind.name != "an HDF5 file":
        raise RecordingError(
            f"{path} is not an NWB file",
            got=kind.name if kind else "a file that is not HDF5",
            expected="an NWB file (HDF5)",
            hint=kind.hint if kind else None,
        )
    version = _version(path)
    if not version.removeprefix("NWB-").startswith("2"):
        raise RecordingError(
            f"{path} is not a file of NWB 2",
            got=f"NWB version {version}" if version else "an HDF5 file without nwb_version",
            expected="nwb_version 2",
            hint="Files of NWB 1 must be converted to NWB 2 first." if version else None,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about older versions of the schema, which are read all the same
        try:
            io = pynwb.NWBHDF5IO(str(path), mode="r", load_namespaces=True)
        except Exception as error:  # h5py, hdmf and the schema raise what they like about a damaged file
            raise RecordingError(f"{path} cannot be read as NWB: {error}") from error
        with io:
            try:
                nwb = io.read()
            except Exception as error:
                raise RecordingError(f"{path} cannot be read as NWB: {error}") from error
            yield NwbFile(path, nwb, {_path(one): one for one in nwb.objects.values() if one is not nwb})


def _version(path: Path) -> str:
    h5py = needed("h5py", extra="nwb")
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("nwb_version") or (file["nwb_version"][()] if "nwb_version" in file else "")
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error}", hint="Copy or download it again.") from error
    return found.decode() if isinstance(found, bytes) else str(found)


def _path(one: Any) -> str:
    names = [one.name]
    while (one := one.parent) is not None and one.parent is not None:
        names.append(one.name)
    return "/".join(reversed(names))


def times_of(series: Any, offset: float = 0.0) -> np.ndarray:
    """(F,) seconds: the timestamps, or those that starting time and rate give; moved by an offset.

    Raises:
        RecordingError: they are not ascending, or fewer than the samples.
    """
    n = len(series.data)
    if series.timestamps is not None:
        times = np.asarray(series.timestamps[:], dtype=np.float64)
    elif series.rate:
        times = (series.starting_time or 0.0) + np.arange(n) / series.rate
    else:
        raise RecordingError(f"{series.name} has neither timestamps nor a rate")
    if len(times) != n:
        raise RecordingError(
            f"{series.name} has {counted(n, 'sample')} and {counted(len(times), 'timestamp')}",
            hint="Which samples are missing cannot be told: repair the file.",
        )
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise RecordingError(f"the timestamps of {series.name} are not finite and ascending")
    return times + offset


def samples(series: Any, first: int = 0, last: int | None = None) -> np.ndarray:
    """Samples from first to last (excluded), in the series' unit: its conversion is applied."""
    values = np.asarray(series.data[first:last])
    conversion, offset = getattr(series, "conversion", 1.0), getattr(series, "offset", 0.0)
    if conversion in (None, 1.0) and not offset:
        return values
    return values.astype(np.float64) * conversion + offset
