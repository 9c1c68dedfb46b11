"""Packages that only some conversions need."""

from __future__ import annotations

import importlib
from typing import Any

from training.errors import ConfigError

__all__ = ["needed"]


def needed(module: str, *, extra: str) -> Any:
    """Imports a module such as `pynwb`.

    Raises:
        ConfigError: it is not installed, or cannot be imported; the hint is the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name in (None, package)
        problem = "which is not installed" if is_missing else f"which cannot be imported: {error}"
        raise ConfigError(
            f"this needs {package}, {problem}", hint=f"In the checkout of the project: pip install '.[{extra}]'"
        ) from error
