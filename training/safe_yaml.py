"""YAML without objects, bounded in what it unpacks to: aliases can make a few lines stand for 10^9 values."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["MAX_BYTES", "MAX_VALUES", "load_yaml"]

MAX_BYTES = 1_000_000  # of a file; options take a few thousand
MAX_VALUES = 100_000  # with every alias replaced by what it stands for


class _Loader(yaml.SafeLoader):
    """Tuples, which the reference code's trainer writes, are read as lists."""

    def construct_tuple(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_tuple)


def load_yaml(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        ValueError: it is not YAML, has objects, is nested too deeply, or unpacks to more than `MAX_VALUES` values.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is too large ({len(text):,} characters; at most {MAX_BYTES:,} are read)")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MAX_VALUES:
            raise ValueError(f"its aliases unpack to more than {MAX_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(getattr(error, "problem", None) or str(error)) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (KeyError, TypeError, AttributeError, OverflowError) as error:  # PyYAML's constructors of broken values
        raise ValueError(f"a value cannot be read ({error!r})") from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node. Each node is visited once, as aliases are the same node."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (n := known.get(id(node))) is not None:
        if n == 0:
            raise ValueError("an alias contains itself")
        return n
    known[id(node)] = 0  # being counted
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
