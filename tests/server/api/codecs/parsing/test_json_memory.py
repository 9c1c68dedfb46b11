"""The memory reserved for a JSON body is at least what parsing it takes, as measured; too many values are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from server.api.codecs.parsing.json_memory import json_memory
from server.api.codecs.request import read_json
from server.errors import TooLarge

RNG = np.random.default_rng(0)
N = 200_000

JSON = {
    "lists": b"[" + b"[]," * N + b"[]]",
    "objects": b"[" + b"{}," * N + b"{}]",
    "objects of one key": b"[" + b'{"a":1},' * N + b"1]",
    "small integers": b"[" + b"0," * 5 * N + b"0]",
    "integers": b"[" + b"123456," * 5 * N + b"0]",
    "floats": orjson.dumps(RNG.normal(size=5 * N).tolist()),
    "images": orjson.dumps(RNG.normal(size=(20, 1, 300, 200)).tolist()),
    "short texts": b"[" + b'"ab",' * 5 * N + b'""]',
    "long texts": orjson.dumps(["x" * 1000] * 10_000),
    "texts that are not Latin": orjson.dumps(["x" * 1000 + "\N{SNOWMAN}\N{PILE OF POO}"] * 10_000),
    "escaped texts": b'["' + b"x" * 10_000_000 + b'\\ud83d\\ude00"]',
    "keys": orjson.dumps({f"key {i}": i for i in range(N)}),
}
PARSE = """
import os, resource, sys
import numpy, orjson

for file in sys.argv[1:]:
    if not (child := os.fork()):
        body = open(file, "rb").read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        parsed = orjson.loads(body)
        if type(parsed[0] if isinstance(parsed, list) else None) in (int, float) or file.endswith("images"):
            array = numpy.array(parsed, dtype=numpy.float64)
            narrow = array.astype(numpy.float32)
        print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_the_memory_of_json_is_at_least_what_parsing_takes_and_of_its_order(tmp_path: Path) -> None:
    for name, body in JSON.items():
        (tmp_path / name).write_bytes(body)
    files = [str(tmp_path / name) for name in JSON]
    output = subprocess.run([sys.executable, "-c", PARSE, *files], check=True, capture_output=True, text=True).stdout
    for (name, body), grown in zip(JSON.items(), map(int, output.split()), strict=True):
        reserved = json_memory(body) - len(body)
        assert grown <= reserved + 2**20, name
        assert reserved <= 6 * grown + 2**20, name


def test_json_of_too_many_values_is_refused_before_it_is_parsed() -> None:
    for part in (b"[],", b'{"a":1},', b"0,"):
        with pytest.raises(TooLarge, match="too many values"):
            json_memory(b"[" + part * (8_000_001 if part == b"0," else 250_001) + b"0]")
    assert read_json(b'{"a": [1, 2]}') == {"a": [1, 2]}
