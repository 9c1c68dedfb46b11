"""Optional packages, imported only when an experiment needs them, so that `import v1t_client` stays fast."""

from __future__ import annotations

import importlib
from typing import Any

from v1t_client._errors import MissingExtra

__all__ = ["needed"]


def needed(module: str, extra: str = "insilico") -> Any:
    """Imports a module such as `xarray` or `scipy.optimize`.

    Raises:
        MissingExtra: it is not installed, or cannot be imported, for example because it does not fit another package;
            the message quotes Python's reason, and the hint is the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name in (None, package)
        problem = "which is not installed" if is_missing else f"which cannot be imported: {error}"
        raise MissingExtra(
            f"this needs {package}, {problem}",
            hint=f"In the checkout of the project: pip install './clients/python[{extra}]'",
        ) from error
