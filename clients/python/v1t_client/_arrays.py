"""Arrays from what users have: numpy arrays, masked arrays, tensors of any device and precision, nested lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument, V1TError

__all__ = ["as_array", "is_tensor"]


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """The values as a numpy array.

    Args:
        name: of the argument, for errors.

    Raises:
        InvalidArgument: it cannot be read as an array, is ragged, or has masked values.
    """
    try:
        return np.asarray(_plain(value, name))
    except V1TError:
        raise
    except Exception as error:  # of numpy, or of whatever library the object is from
        if isinstance(error, ValueError) and "inhomogeneous" in str(error):
            raise InvalidArgument(f"{name} is ragged", expected="lists of one length") from error
        raise InvalidArgument(
            f"{name} cannot be read as an array: {error}", got=type(value).__name__, hint="Pass a numpy array."
        ) from error


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor. torch itself is not imported."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(value).sum())
        if masked:
            raise InvalidArgument(
                f"{name} has masked values",
                got=f"{masked:,} of {value.size:,} masked",
                expected="no masked value",
                hint="Choose what they are: array.filled(value).",
            )
        return value.data
    if is_tensor(value):
        tensor = value.detach().cpu()
        try:
            return np.asarray(tensor)
        except TypeError:
            return np.asarray(tensor.float())  # numpy has no bfloat16
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    return value
