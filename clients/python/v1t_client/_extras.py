"""Optional packages, imported when an experiment needs them, so that `import v1t_client` stays light."""

from __future__ import annotations

import importlib
from typing import Any

from v1t_client._errors import MissingExtra

__all__ = ["needed"]


def needed(module: str) -> Any:
    """The module, such as `xarray` or `scipy.optimize`.

    Raises:
        MissingExtra: it is not installed; says what to type.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(
            f"in-silico experiments need {package}, which is not installed", hint="pip install 'v1t-client[insilico]'"
        ) from error
