"""Optional packages, imported only when an experiment needs them, so that `import v1t_client` stays fast."""

from __future__ import annotations

import importlib
from typing import Any

from v1t_client._errors import MissingExtra

__all__ = ["needed"]


def needed(module: str, *, extra: str = "insilico") -> Any:
    """Imports a module such as `xarray` or `scipy.optimize`.

    Raises:
        MissingExtra: it is not installed; the hint is the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {module.partition('.')[0]}, which is not installed", hint=f"pip install 'v1t-client[{extra}]'"
        ) from error
