"""Options of `v1t`: none replaces an earlier one, hints say what to type here, and outputs say what they are."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import functools
import json
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import v1t_client
from PIL import Image
from support.contract_server import SHAPE, SPEEDS, error_reply
from support.live_server import ROOT
from v1t_client._cli import command as cli
from v1t_client._cli.hints import on_command_line
from v1t_client._cli.parser import Parser
from v1t_client._large_sets.image_sets import image_files, natural_order
from v1t_client._options import integers, named_number, numbers, words


@pytest.fixture
def v1t(server, monkeypatch, capsys, tmp_path):
    """Runs a command line in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.setattr(cli, "Client", functools.partial(v1t_client.Client, transport=server.transport()))
    for name in ("V1T_URL", "V1T_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, SHAPE[1:], dtype=np.uint8)).save(path)


# Options given twice


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def values_of(action: argparse.Action) -> tuple[list[str], list[str]]:
    """Two different valid values of an option, as arguments."""
    if action.choices:
        one, *_, two = action.choices
    elif action.type in (integers, numbers):
        one, two = "1,2", "3"
    elif action.type is words:
        one, two = "a,b", "c"
    elif action.type is named_number:
        one, two = "whisking=1", "licking=2"
    elif action.dest == "monitor":
        one, two = "50x30@10", "50x30@20"
    else:
        one, two = "1", "2"
    n = action.nargs if isinstance(action.nargs, int) else 1
    return [one] * n, [two] * n


OPTIONS = [
    (parser, action)
    for parser in parsers(cli._parser())
    for action in parser._actions
    if action.option_strings and action.nargs != 0
]


@pytest.mark.parametrize(("parser", "action"), OPTIONS, ids=lambda x: getattr(x, "prog", None) or x.option_strings[0])
def test_no_option_replaces_an_earlier_one(parser, action, capsys):
    option, (one, two) = action.option_strings[0], values_of(action)
    seen = Namespace()
    with contextlib.suppress(SystemExit):  # the rest of the command may be missing
        parser.parse_args([option, *one, option, *two], seen)
    refused = f"argument {option}: given twice" in capsys.readouterr().err
    held = getattr(seen, action.dest, None)
    if isinstance(held, dict):
        held = [f"{name}={value:g}" for name, value in held.items()]
    expected = [part for text in (*one, *two) for part in text.split(",")]
    assert refused or [x if isinstance(x, str) else f"{x:g}" for x in held] == expected
    once = Namespace()
    with contextlib.suppress(SystemExit):
        parser.parse_args([option, *one], once)
    assert "given twice" not in capsys.readouterr().err


def test_the_walk_finds_every_parser_and_all_are_of_the_shared_class():
    found = list(parsers(cli._parser()))
    assert len(found) > 12
    assert len(OPTIONS) > 150
    assert all(isinstance(parser, Parser) for parser in found)


def test_lists_take_spaces_commas_and_repetitions_and_defaults_are_not_extended():
    parser = Parser()
    parser.add_argument("--names", nargs="+", type=words, default=("x",))
    parser.add_argument("--ids", type=integers, default=(7,))
    assert parser.parse_args([]) == Namespace(names=("x",), ids=(7,))
    given = ["--names", "a", "b,c", "--ids", "1,2", "--names", "d", "--ids", "3"]
    for _ in range(2):  # a parser can be used twice
        assert parser.parse_args(given) == Namespace(names=("a", "b", "c", "d"), ids=(1, 2, 3))


def test_a_repeated_option_is_refused_by_name_and_a_repeated_list_reaches_the_server(server, v1t):
    picture(Path("a.png"))
    code, _, err = v1t("predict a.png --mouse A --running-speed 1 --running-speed 2")
    assert (code, server.seen) == (2, [])
    assert "--running-speed: given twice" in err
    ids = server.neuron_ids["A"].tolist()
    assert v1t(f"predict a.png --mouse A --neuron-ids {ids[3]},{ids[1]} --neuron-ids {ids[2]}")[0] == 0
    assert json.loads(server.seen[-1].form["neuron_ids"]) == [ids[3], ids[1], ids[2]]


def test_help_of_replay_and_pack_names_the_server_that_they_use(v1t):
    named = {"replay": "that of the receipt", "pack": "that of the receipt", "rf": "$V1T_URL, else "}
    for verb, default in named.items():
        _, out, _ = v1t(f"{verb} --help")
        out = " ".join(out.split())
        assert f"address of the server (default: {default}" in out
        assert "None" not in out


# States, notes, hints


def test_states_and_strict_are_passed_on_and_notes_are_printed_once(server, v1t):
    picture(Path("a.png"))
    code, _, err = v1t("predict a.png a.png --mouse A --state running")
    assert code == 0
    assert server.seen[0].form["state"] == "running"
    assert f"assumed: running_speed left out: the training running {SPEEDS['running']} cm/s" in err
    np.save("many.npy", np.zeros((100, *SHAPE), np.uint8))
    code, _, err = v1t("predict many.npy --mouse A --running-speed 99 --output r.csv")
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith("note: ")]
    assert line == "note: 64 of 64 images: 99 cm/s is above the recorded 60 (and in 1 more reply)"
    code, _, err = v1t("predict a.png --mouse A --running-speed 99 --strict")
    assert code == 1
    assert "99 cm/s is above" in err


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("Use resize=fit or resize=fill.", "Use --resize fit or --resize fill."),
        ("GET /mice lists them.", "`v1t mice` lists them."),
        ("See GET /mice/SIM1.", "See `v1t mouse SIM1`."),
        ("GET /mice/A/neurons lists them.", "`v1t neurons A` lists them."),
        (
            "Send the header Authorization: Bearer <key>; the server's operator hands out keys.",
            "Set the environment variable V1T_API_KEY to your key; the server's operator hands out keys.",
        ),
        ("Try again in a moment; GET /readyz says when.", "Try again in a moment; `v1t ready` says when."),
        ("Leave strict out to have it answered.", "Leave --strict out to have it answered."),
        ("Leave strict=true out, or choose state=rest.", "Leave --strict out, or choose --state rest."),
        ("client.mice() lists the ids.", "`v1t mice` lists the ids."),
        ("Choose another name, or add force.", "Choose another name, or add --force."),
    ],
)
def test_hints_say_what_to_type_on_the_command_line(server, v1t, said, typed):
    assert on_command_line(said) == typed
    picture(Path("a.png"))
    server.script.append(error_reply(422, "invalid_input", "no", "x", None, said))
    assert f"  hint      {typed}" in v1t("predict a.png --mouse A")[2]


def test_no_hint_of_the_server_or_the_client_reaches_the_command_line_as_http_or_python():
    """Every string literal of the packages that is a hint or an expectation."""
    sources = [*ROOT.glob("server/api/codecs/*.py"), *ROOT.glob("server/serving/*.py")]
    sources += ROOT.glob("clients/python/v1t_client/**/*.py")
    hint = re.compile(r'(?:hint|expected)=f?"((?:[^"\\]|\\.)*)"')
    found = [text for path in sources for text in hint.findall(path.read_text(encoding="utf-8"))]
    assert len(found) > 100
    left = [
        text
        for text in map(on_command_line, found)
        if re.search(r"resize=|GET /mice|GET /readyz|Bearer|client\.mice|strict=|state=(?!\{)|Client\(timeout", text)
    ]
    assert left == []


# Folders of pictures


def test_a_folder_is_read_in_natural_order_and_every_output_names_its_files(server, v1t):
    for i, name in enumerate(["img10.png", "img2.png", "img1.png", "IMG3.png", ".hidden.png", "._img1.png"]):
        picture(Path("folder") / name, seed=i)
    Path("folder/.DS_Store").touch()
    picture(Path("elsewhere/linked.png"), seed=9)
    Path("folder/img4.png").symlink_to(Path("elsewhere/linked.png").resolve())
    Path("folder/img5.png").mkdir()  # a folder, whatever its name
    Path("folder/__MACOSX").mkdir()
    names = ["img1.png", "img2.png", "IMG3.png", "img4.png", "img10.png"]
    grey = np.array([len((Path("folder") / name).read_bytes()) % 251 for name in names])
    images = np.broadcast_to(grey[:, None, None, None], (5, *SHAPE))
    expected = server.responses(images, np.full(5, 4.0), server.neuron_ids["A"])
    for output in ("f.csv", "f.json", "f.npy"):
        code, out, err = v1t(f"predict folder --mouse A --running-speed 4 --top 1 --output {output}")
        assert code == 0, err
        assert [line.split()[0] for line in out.splitlines()[2:]] == names
    with Path("f.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows[::23]] == names
    np.testing.assert_allclose([float(row["response"]) for row in rows], expected.ravel(), rtol=1e-6)
    for beside in ("f.csv.json", "f.json", "f.npy.json"):
        content = json.loads(Path(beside).read_text(encoding="utf-8"))
        assert content["images"] == names
        assert content["model"]["simulated"] is True
    np.testing.assert_array_equal(np.load("f.npy"), expected)


def test_the_case_of_ten_before_two(v1t):
    folder = ROOT.parent / "shared" / "cases" / "folder-order"
    if not folder.is_dir():
        pytest.skip("the small inputs that failed are not beside the checkout")
    _, out, _ = v1t(f"predict {folder} --mouse A --top 1")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["img1.png", "img2.png", "img10.png"]


def test_names_are_sorted_by_their_numbers_whatever_surrounds_them():
    names = ["b1", "a10", "a9", "a09", "A2", "a2b10", "a2b9", "10", "9", "a", "2a", "\N{ARABIC-INDIC DIGIT THREE}"]
    order = ["2a", "\N{ARABIC-INDIC DIGIT THREE}", "9", "10", "a", "A2", "a2b9", "a2b10", "a09", "a9", "a10", "b1"]
    assert sorted(names, key=natural_order) == order


@pytest.mark.parametrize("kind", ["empty", "hidden", "folders", "broken", "absent"])
def test_a_folder_without_pictures_is_explained(tmp_path, kind):
    folder = tmp_path / "folder"
    if kind != "absent":
        folder.mkdir()
    if kind == "hidden":
        (folder / "._1.png").touch()
    if kind == "folders":
        picture(folder / "day1" / "1.png")
    if kind == "broken":
        (folder / "1.png").symlink_to(folder / "gone.png")
    words_of = {"folders": "day1", "broken": "leads nowhere", "absent": "no such folder"}
    with pytest.raises(v1t_client.InvalidArgument, match=words_of.get(kind, "has no images")):
        image_files(folder)


@pytest.mark.parametrize("shape", [(5, 36, 64), (1, 36, 64), (36, 64), (5, 1, 36, 64), (100, 36, 64)])
def test_a_stack_is_taken_as_one_image_per_plane(server, v1t, shape):
    stack = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.save("stack.npy", stack)
    assert v1t("predict stack.npy --mouse A --running-speed 4 --output r.npy")[0] == 0
    images = stack.reshape(-1, *SHAPE)
    expected = server.responses(images, np.full(len(images), 4.0), server.neuron_ids["A"])
    np.testing.assert_array_equal(np.load("r.npy"), expected)


# Writing


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("output", ["r.csv", "r.json", "r.npy"])
def test_a_full_disk_leaves_no_result_behind_and_an_earlier_one_as_it_was(v1t, monkeypatch, output):
    picture(Path("a.png"))
    before = sorted(Path().iterdir())
    for name in ("_write_csv", "write_sidecar"):
        monkeypatch.setattr(f"v1t_client._cli.output.{name}", full)
    monkeypatch.setattr("v1t_client._cli.output.json", Namespace(dumps=full))
    monkeypatch.setattr("v1t_client._cli.output.np", Namespace(save=full, asarray=np.asarray, float32=np.float32))
    code, _, err = v1t(f"predict a.png --mouse A --output {output}")
    assert code == 2
    assert "No space left on device" in err
    assert sorted(Path().iterdir()) == before
    Path(output).write_text("earlier")
    assert v1t(f"predict a.png --mouse A --output {output} --force")[0] == 2
    assert Path(output).read_text() == "earlier"


def test_a_disk_that_fills_up_in_a_large_set_keeps_what_is_done(server, client, monkeypatch, tmp_path):
    from v1t_client._large_sets import responses_file

    images = np.zeros((30, *SHAPE), np.uint8)
    write = responses_file.ResponsesFile._write

    def ask() -> v1t_client.Prediction:
        return client.predict_many("A", images, output=tmp_path / "r.npy", chunk=10, in_flight=1)

    monkeypatch.setattr(responses_file.ResponsesFile, "_write", full)
    with pytest.raises(v1t_client.V1TError, match="No space left on device"):
        ask()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(
        responses_file.ResponsesFile, "_write", lambda self, part: full() if self.done else write(self, part)
    )
    with pytest.raises(v1t_client.V1TError, match="repeat the call to resume"):
        ask()
    assert not (tmp_path / "r.npy").exists()
    monkeypatch.undo()
    n_before = len(server.seen)
    assert len(ask()) == 30
    assert len([seen for seen in server.seen[n_before:] if seen.path == "/predict"]) == 2  # not the first ten again


def test_the_sidecar_is_not_overwritten_unasked(v1t):
    picture(Path("a.png"))
    Path("r.csv.json").write_text("precious")
    code, _, err = v1t("predict a.png --mouse A --output r.csv")
    assert (code, "r.csv.json" in err) == (2, True)
    assert Path("r.csv.json").read_text() == "precious"


def test_standardised_mice_are_marked_and_the_refusal_of_a_picture_says_what_to_type(server, v1t):
    picture(Path("a.png"))
    server.standardized = True
    assert "standardised" in v1t("mice")[1]
    np.save("a.npy", np.zeros(SHAPE, np.float32))
    assert "note: inputs are standardised" in v1t("predict a.npy --mouse A")[2]
    hint = "Import the weights again with --recordings, or send a float32 array."
    server.script.append(error_reply(422, "invalid_input", "mouse A takes standardised images", "PNG", None, hint))
    code, _, err = v1t("predict a.png --mouse A")
    assert code == 1
    assert "takes standardised images" in err
    assert "--recordings" in err


def test_no_hint_installs_from_an_index_where_the_package_is_not():
    texts = [*ROOT.glob("clients/python/**/*.py"), *ROOT.glob("clients/python/*.md"), *ROOT.glob("docs/*.md")]
    wrong = re.compile(r"pip install ['\"]?v1t-client")
    assert [path.name for path in [*texts, ROOT / "README.md"] if wrong.search(path.read_text(encoding="utf-8"))] == []
