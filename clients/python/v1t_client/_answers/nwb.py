"""Predictions and results of experiments as NWB files: tables with units, and how they were made."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client._replacing import cannot_write

if TYPE_CHECKING:
    import xarray

__all__ = ["write_nwb"]


def write_nwb(
    dataset: xarray.Dataset,
    path: Path,
    *,
    title: str,
    description: str,
    provenance: str,
    created: str,
    simulated: bool,
    force: bool,
) -> None:
    """Writes a dataset whose dimension `neuron` (or `image`) has a row each, as a whole or not at all.

    The module "in_silico" has a table for each dimension: its coordinates, and every variable that has the dimension,
    which is stored with this dimension first. A variable stands in the table of `neuron` if it has that dimension, and
    otherwise in that of its first one; what has none is in the provenance.

    Args:
        provenance: JSON, which becomes the notes of the file.
        created: ISO 8601; empty if it is not known.
        force: replaces a file that exists.

    Raises:
        InvalidArgument: the path exists and `force` is not set, or cannot be written.
        MissingExtra: pynwb is not installed.
    """
    if not force and path.exists():
        raise InvalidArgument("the output exists", got=path, hint="Choose another name, or replace it with force=True.")
    pynwb, common = needed("pynwb", extra="nwb"), needed("hdmf.common", extra="nwb")
    start = datetime.fromisoformat(created.replace("Z", "+00:00")) if created else datetime.now()
    nobody = "Simulated: no animal was recorded. " if simulated else ""
    nwb = pynwb.NWBFile(
        session_description=f"{nobody}{title}: predicted by a digital twin, not recorded. {description}",
        identifier=hashlib.sha256(f"{provenance}{created}".encode()).hexdigest(),
        session_start_time=start.astimezone(),
        keywords=["digital twin", "in silico", "visual cortex"],
        notes=provenance,
        subject=pynwb.file.Subject(
            subject_id=str(dataset.attrs.get("mouse", "unknown")).replace("/", "-"),
            species="Mus musculus",
            sex="U",
            age="P1D/",
            description=f"{nobody}The mouse that the twin was trained on. Its age and sex are not known.",
        ),
    )
    module = nwb.create_processing_module(name="in_silico", description="What the twin predicts.")
    for dimension, columns in _tables(dataset).items():
        module.add(
            common.DynamicTable(
                name=f"{dimension}s",
                description=f"A row for each {dimension}.",
                columns=[
                    common.VectorData(name=name, description=about, data=values) for name, about, values in columns
                ],
            )
        )
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.nwb")
    try:
        with pynwb.NWBHDF5IO(str(partial), mode="w") as io:
            io.write(nwb)
        partial.replace(path)
    except OSError as error:
        raise cannot_write(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def _tables(dataset: xarray.Dataset) -> dict[str, list[tuple[str, str, Any]]]:
    """Dimension -> columns: name, description with the unit and the other dimensions, and values."""
    found: dict[str, list[tuple[str, str, Any]]] = {}
    for name in [*dataset.coords, *dataset.data_vars]:
        array = dataset[name]
        if not array.dims:
            continue
        dims = [str(dim) for dim in array.dims]
        first = "neuron" if "neuron" in dims else dims[0]
        array = array.transpose(first, ...)
        values = array.values
        others = ", ".join(str(dim) for dim in array.dims[1:])
        about = str(array.attrs.get("long_name") or name)
        unit = array.attrs.get("units")
        about += (f" [{unit}]" if unit else "") + (f"; for each {others}" if others else "")
        label = "neuron_id" if name == "neuron" else str(name)
        found.setdefault(first, []).append(
            (
                label,
                about,
                values.astype(str).tolist()
                if values.dtype.kind in "OU"
                else values.astype(np.int8)
                if values.dtype == bool
                else values,
            )
        )
    return found
