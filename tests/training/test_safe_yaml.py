"""YAML: what a small file unpacks to is bounded."""

from __future__ import annotations

import pytest
import yaml

from training.safe_yaml import MAX_BYTES, load_yaml


@pytest.mark.parametrize("content", [{"a": [1, 2.5, None, True], "b": {"c": "x"}}, "word", 3, None, [], {"a": {}}])
def test_documents_are_read(content: object) -> None:
    assert load_yaml(yaml.safe_dump(content)) == content


def test_aliases_and_tuples_are_read() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x\nc: *x") == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}
    assert load_yaml("a: !!python/tuple [1, 36, 64]") == {"a": [1, 36, 64]}
    assert load_yaml("base: &b {x: 1}\nmore: {<<: *b, y: 2}")["more"] == {"x": 1, "y": 2}


def bomb(levels: int, pair: str) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {pair.format(alias=f'*a{i - 1}')}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(60, "[{alias}, {alias}]"), "aliases unpack to more than"),
        (bomb(60, "{{x: {alias}, y: {alias}}}"), "aliases unpack to more than"),
        (bomb(60, "{{<<: [{alias}, {alias}], z: 1}}"), "aliases unpack to more than"),
        ("a: &a [*a]", "alias contains itself"),
        ("[" * 5000, "nested too deeply"),
        ("x" * (MAX_BYTES + 1), "too large"),
        ("a: [", "expected"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: !!int many", "invalid literal|cannot be read"),
        ("a: !!timestamp x", "cannot be read"),
        ("? [a, {b: c}]\n: 1", "unhashable"),
        ("a: *b", "undefined alias"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_yaml(text)
