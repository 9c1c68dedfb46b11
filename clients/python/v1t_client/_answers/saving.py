"""Saving an answer as a file of another program: a table as parquet, labelled arrays as NetCDF or Zarr."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client._replacing import replacing

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["save"]


def save(
    path: str | os.PathLike[str],
    *,
    frame: Callable[[], pandas.DataFrame],
    dataset: Callable[[], xarray.Dataset],
    force: bool,
) -> None:
    """Writes the frame to a .parquet, or the dataset to a .nc or .zarr.

    Raises:
        InvalidArgument: the path has another ending, exists and `force` is not set, or cannot be written.
        MissingExtra: a package that writes this kind of file is not installed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".parquet", ".nc", ".zarr"):
        raise InvalidArgument(
            "no such kind of file", got=path.name, expected="a name that ends with .parquet, .nc or .zarr"
        )
    if not force and path.exists():
        raise InvalidArgument("the output exists", got=path, hint="Choose another name, or replace it with force=True.")
    needed(*{".parquet": ("pyarrow", "tables"), ".nc": ("h5netcdf", "insilico"), ".zarr": ("zarr", "zarr")}[kind])
    content = frame() if kind == ".parquet" else dataset()
    with replacing(path) as beside:
        if kind == ".parquet":
            content.to_parquet(beside)
        elif kind == ".nc":
            content.to_netcdf(beside, engine="h5netcdf")
        else:  # version 2 of the format, which every reader knows; version 3 has no strings yet
            content.to_zarr(beside, zarr_format=2)
