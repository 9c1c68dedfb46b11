"""Arguments: what is given twice is kept or refused by name, in every verb."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from training.__main__ import VERBS, main
from training.arguments import Parser
from training.config import parse_options
from training.errors import ConfigError


def parser_of(verb: str) -> Parser:
    parser = Parser(prog=verb)
    importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    return parser


OPTIONS = [
    (verb, action.dest)
    for verb in VERBS
    for action in parser_of(verb)._actions
    if action.option_strings and action.nargs != 0
]


@pytest.mark.parametrize(("verb", "dest"), OPTIONS)
def test_an_option_that_is_given_twice_keeps_all_its_values_or_is_refused(
    verb: str, dest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Walks the options of all verbs: each is parsed alone, twice."""
    parser = parser_of(verb)
    action = next(action for action in parser._actions if action.dest == dest)
    for other in parser._actions:  # only this option counts
        other.required = False
        if not other.option_strings:
            other.nargs, other.choices = "*", None
    option = action.option_strings[0]
    values = [str(value) for value in action.choices or ("1", "2")][:2]
    n = action.nargs if isinstance(action.nargs, int) else 1
    first, second = ([option, *[value] * n] for value in (values[0], values[-1]))
    if action.nargs in ("+", "*"):
        parsed = getattr(parser.parse_args([*first, *second]), dest)
        assert [str(value) for value in parsed] == [values[0], values[-1]]
        assert [str(value) for value in getattr(parser.parse_args(second), dest)] == [values[-1]]  # not of before
        return
    with pytest.raises(SystemExit):
        parser.parse_args([*first, *second])
    assert f"{option} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_printed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert ("NAME=PATH" in printed) == ("--recordings" in printed or verb in ("inspect", "trials"))


def test_an_option_of_a_model_is_set_once() -> None:
    assert parse_options(["core.dim=16", "training.seed=2"]) == ({"core.dim": 16}, {"seed": 2})
    with pytest.raises(ConfigError, match=r"option core\.dim is given twice; got core\.dim=32"):
        parse_options(["core.dim=16", "core.dim=32"])
    with pytest.raises(ConfigError, match=r"option training\.seed is given twice"):
        parse_options(["training.seed=1", "training.seed=1"])


def test_repeated_values_extend_each_other_and_not_the_default() -> None:
    parser = Parser()
    parser.add_argument("--size", nargs="+", type=int, default=[7])
    for _ in range(2):
        assert parser.parse_args([]).size == [7]
        assert parser.parse_args(["--size", "1", "2", "--size", "3"]).size == [1, 2, 3]


def test_an_output_that_exists_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the source, which does not exist."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(["import", str(tmp_path / "none"), "--output", str(tmp_path / "mine")]) == 1
    assert "mine exists. Give another --output, or --force to replace it" in capsys.readouterr().err
