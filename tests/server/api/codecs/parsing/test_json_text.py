"""JSON bodies to plain data: a key that occurs twice in one object is refused, wherever it stands."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from server.api.codecs.parsing.json_text import check_keys, parse_json
from server.errors import InvalidInput, TooLarge


def repeats_a_key(text: bytes) -> bool:
    """By the parser of the standard library."""
    found = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        found |= len(dict(items)) < len(items)
        return dict(items)

    json.loads(text, object_pairs_hook=pairs)
    return found


def random_json(rng: random.Random, depth: int) -> str:
    """A value whose keys and strings are few and awkward, so that keys repeat about as often as not."""
    strings = ["a", "b", "\\u0061", "a:b", '\\"', "{", "}", "\\\\", "\\u003a", "é", ""]
    space = rng.choice(["", " ", "\n\t"])
    kind = rng.choice("sn[{" if depth else "sn")
    if kind == "s":
        return f'"{rng.choice(strings)}"'
    if kind == "n":
        return rng.choice(["1", "-2.5e3", "null", "true"])
    values = [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == "[":
        return "[" + f"{space},".join(values) + "]"
    return "{" + ",".join(f'{space}"{rng.choice(strings)}"{space}:{space}{value}' for value in values) + "}"


def test_a_key_that_occurs_twice_is_refused_and_nothing_else() -> None:
    rng = random.Random(0)
    n_refused = 0
    for _ in range(3000):
        text = random_json(rng, 4).encode()
        refused = False
        try:
            assert parse_json(memoryview(text), "the body") == json.loads(text)
        except InvalidInput:
            refused = True
        assert refused == repeats_a_key(text), text
        n_refused += refused
    assert 100 < n_refused < 2900


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (b'{"mouse": "A", "mouse": "B"}', "'mouse' again at line 1, column 16"),
        (b'{"mouse": "A",\n "m\\u006fuse": "B"}', "'mouse' again at line 2, column 2"),
        (
            b'{"image": [[1, 2]], "behavior": {"running_speed": 1, "running_speed": 2}}',
            "'running_speed' again at line 1",
        ),
        (b'{"inputs": [{"name": "image"}, {"name": "a:b", "data": [0.5], "data": [1]}]}', "'data' again at line 1"),
        (b'{"parameters": {"a": 1, "b": {"c": ":"}}, "parameters": {}}', "'parameters' again at line 1, column 43"),
    ],
)
def test_the_key_and_its_place_are_named(text: bytes, got: str) -> None:
    with pytest.raises(InvalidInput, match="the body has a key twice in one object") as refused:
        parse_json(text, "the body")
    assert str(refused.value.got).startswith(got)
    assert refused.value.expected == "each key once in an object"
    assert refused.value.hint is not None


@pytest.mark.parametrize("part", [b'{"a": 1}', b'""'])
def test_the_search_for_repeated_keys_ends_where_there_are_more_strings_than_a_request_has(part: bytes) -> None:
    text = b'{"id": "a:b", "image": [[' + b", ".join([part] * 11_000) + b"]]}"
    with pytest.raises(TooLarge, match="too many strings and objects"):
        check_keys(text, json.loads(text), "the body")
