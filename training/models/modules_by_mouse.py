"""Modules of mice, by the names that labs give to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

__all__ = ["ModulesByMouse", "module_name"]

# Names that torch reserves in a container of modules, such as "keys" and "training".
_RESERVED = frozenset([*dir(nn.ModuleDict()), "_names"])


def module_name(mouse_id: str) -> str:
    """The name of a mouse's module: its own, with "." and "%" as in URLs, and the first letter of reserved names.

    For the mice of the paper, and most others, it is the name itself: so weights keep their names in checkpoints.
    """
    name = mouse_id.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if name in _RESERVED else name


class ModulesByMouse(nn.Module):
    """mouse_id -> module, like `nn.ModuleDict`, which refuses names with dots and those of its own methods."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._names = {mouse_id: module_name(mouse_id) for mouse_id in modules}
        for mouse_id, module in modules.items():
            self.add_module(self._names[mouse_id], module)

    def __getitem__(self, mouse_id: str) -> nn.Module:
        module = self._modules[self._names[mouse_id]]
        assert module is not None
        return module

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        return ((mouse_id, self[mouse_id]) for mouse_id in self)
