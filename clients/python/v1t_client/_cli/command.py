"""The command `v1t`: one verb per method of the client; results on stdout, notes about them on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast
from urllib.parse import quote

from v1t_client._answers.prediction import Prediction
from v1t_client._cli import tables
from v1t_client._cli.hints import on_command_line
from v1t_client._cli.output import check_output_file, write_prediction
from v1t_client._cli.parser import Parser
from v1t_client._cli.predict_set import is_for_zarr, predict_set
from v1t_client._cli.predictor_options import add_behavior, add_bundle, only_url, open_from
from v1t_client._client import Client
from v1t_client._errors import InvalidArgument, ServerError, V1TError
from v1t_client._large_sets.chunks import CHUNK
from v1t_client._large_sets.image_sets import open_images
from v1t_client._large_sets.responses_file import can_resume
from v1t_client._options import count, integers, number, positive
from v1t_client._protocol.arguments import NeuronFilters, PredictOptions
from v1t_client._replicas import Replicas
from v1t_client._version import __version__

__all__ = ["main"]

_DEFAULT_URL = "http://127.0.0.1:3000"

_EXAMPLES = """\
examples:
  v1t ready --wait 30                    wait until the server's models are loaded
  v1t mice                               list the mice that the server serves
  v1t mouse A                            image size, behaviour ranges, test scores of mouse A
  v1t neurons A --score-min 0.3          neurons whose test correlation is at least 0.3
  v1t predict image.png --mouse A --pupil-dilation 41 --running-speed 3
                                         predict the responses of mouse A to image.png

environment:
  V1T_URL       address of the server (default http://127.0.0.1:3000)
  V1T_API_KEY   the API key, for servers that require one
"""

_PREDICT_EXAMPLES = """\
examples:
  v1t predict image.png --mouse A --pupil-dilation 41 --running-speed 3
  v1t predict image.png --mouse A --resize fit --neuron-ids 12,99,7
  v1t predict photographs/ --mouse A --state running --output running.csv
  v1t predict a.png b.png --mouse A --spread --output responses.csv
  v1t predict image.png --mouse A --mouse B --output responses.npy
                                         writes responses.A.npy and responses.B.npy
  v1t predict stimulus.npy --mouse A --pupil-center 3.5 -1.2 --units raw --output responses.npy
                                         any number of images; if interrupted, run the command again to resume
  v1t predict --dataset images.zarr --mouse A --output responses.zarr --url http://a:3000 --url http://b:3000
                                         by several servers; --bundle FOLDER --ray ADDRESS: by a Ray cluster

Behaviour that is left out is filled in from --state; lines `assumed:` on stderr list it. Lines `note:` say which inputs
are outside what was recorded; `v1t mouse A` shows the range of each. The images of a folder are taken in natural order
(1, 2, 10), and every output has their file names.

A .npy or .csv file comes with a JSON file beside it (responses.csv.json): mouse, model and version, whether it is
simulated, state, what was assumed, notes, neuron ids and file names. A .json file has them itself, and a .zarr folder
in its attributes and coordinates.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `v1t`. Returns the exit code: 0 success, 1 the server failed or refused, 2 wrong usage."""
    try:
        words = sys.argv[1:] if argv is None else argv
        options = _parser(experiments=not words or words[0] not in _COMMANDS).parse_args(words)
        code = _run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # such as `v1t neurons A | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("v1t: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        if options.verb not in _COMMANDS:
            from v1t_client._cli import experiments

            return experiments.run(options)
        if options.verb == "predict":
            return _predict_with(options)
        with _client(options) as client:
            return _COMMANDS[options.verb](client, options)
    except V1TError as error:
        print(_format_error(error), file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    except BrokenPipeError:
        raise
    except OSError as error:  # such as a full disk, or a folder without permission
        where = f": {error.filename}" if error.filename else ""
        print(f"v1t: {error.strerror or error}{where}", file=sys.stderr)
        return 1


def _client(options: argparse.Namespace) -> Client:
    return Client(only_url(options), api_key=options.api_key, timeout=options.timeout, retries=options.retries)


def _predict_with(options: argparse.Namespace) -> int:
    """`v1t predict` on the server or servers that the options choose."""
    if bool(options.images) == (options.dataset is not None):
        raise InvalidArgument("`v1t predict` needs images", expected="either IMAGE ... or --dataset PATH")
    options.images = options.images or [options.dataset]
    into_zarr = is_for_zarr(options)
    is_one_server = options.bundle is None and options.ray is None and len(options.url) == 1
    with _client(options) if is_one_server else open_from(options) as predictor:
        if into_zarr:
            return predict_set(options, _chosen_mice(predictor, options), predictor)
        assert not isinstance(predictor, Replicas)  # `is_for_zarr` has refused several
        return _predict(predictor, options)


def _predict(client: Client, options: argparse.Namespace) -> int:
    images = options.images if len(options.images) > 1 else options.images[0]
    arguments = cast("PredictOptions", {name: getattr(options, name) for name in PredictOptions.__optional_keys__})
    mice = _chosen_mice(client, options)
    outputs = {mouse: _output_of(mouse, mice, options.output) for mouse in mice}
    for output in outputs.values():
        check_output_file(output, force=options.force)
    images_opened = open_images(images)
    is_set = isinstance(images, str) and Path(images).is_dir()
    ending = images.lower()[-4:] if isinstance(images, str) else ""
    if ending == "zarr" or (ending == ".npy" and images_opened.n_images == 1):
        # A stack of images (B, H, W), or one image (C, H, W)? That depends on the mouse.
        channels = client.mouse(mice[0], model=options.model).image_shape[0]
        images_opened = open_images(images, channels=channels)
        is_set = images_opened.n_images != 1
    n_images = images_opened.n_images or 0
    is_large = n_images > CHUNK
    if is_large and options.output is None:
        raise InvalidArgument(
            "too many images for a table",
            got=f"{n_images:,}",
            expected=f"at most {CHUNK} without --output",
            hint="--output responses.npy writes the responses as they arrive.",
        )
    printed: set[str] = set()
    if is_large or is_set:
        for mouse, output in outputs.items():
            as_it_comes = is_large and output is not None and output.suffix == ".npy"
            try:
                prediction = client.predict_many(
                    mouse, images_opened, output=output if as_it_comes else None, force=options.force, **arguments
                )
            except (KeyboardInterrupt, V1TError):
                if output is not None and can_resume(output):
                    print("v1t: finished responses are kept; run the same command again to resume", file=sys.stderr)
                raise
            _show(prediction, output, printed, written=as_it_comes, top=0 if is_large else options.top)
        return 0
    if len(mice) == 1:
        predictions = {mice[0]: client.predict(mice[0], images, **arguments)}
    else:
        predictions = client.predict_mice(mice, images, **arguments)
    for mouse, output in outputs.items():
        _show(predictions[mouse], output, printed, written=False, top=options.top)
    return 0


def _chosen_mice(client: Client | Replicas, options: argparse.Namespace) -> list[str]:
    if "*" not in options.mouse:
        return list(dict.fromkeys(options.mouse))
    known = [mouse for mouse in client.mice() if options.model in (None, mouse.model)]
    models = sorted({mouse.model for mouse in known})
    if len(models) > 1:
        raise InvalidArgument("several models are served", got="--mouse '*'", expected=f"--model {' or '.join(models)}")
    return [mouse.mouse_id for mouse in known]


def _output_of(mouse: str, mice: Sequence[str], output: Path | None) -> Path | None:
    """`responses.npy`, or `responses.A.npy` where there are several mice."""
    if output is None or len(mice) == 1:
        return output
    return output.with_name(f"{output.stem}.{quote(mouse, safe=' ')}{output.suffix}")


def _show(prediction: Prediction, output: Path | None, printed: set[str], *, written: bool, top: int) -> None:
    for line in tables.notes(prediction):
        if line not in printed:
            print(on_command_line(line), file=sys.stderr)
        printed.add(line)
    if output is not None:
        if not written:
            write_prediction(prediction, output)
        print(f"wrote {output}", file=sys.stderr)
    if top:
        print(tables.prediction_table(prediction, top=top))


def _mice(client: Client, options: argparse.Namespace) -> int:
    print(tables.mice_table(client.mice()))
    return 0


def _mouse(client: Client, options: argparse.Namespace) -> int:
    print(tables.mouse_card(client.mouse(options.mouse, model=options.model)))
    return 0


def _neurons(client: Client, options: argparse.Namespace) -> int:
    filters = cast("NeuronFilters", {name: getattr(options, name) for name in NeuronFilters.__optional_keys__})
    filters["limit"] = options.limit or None
    neurons = client.neurons(options.mouse, **filters)
    print(tables.neurons_table(neurons))
    if len(neurons) < neurons.total:
        print(f"{len(neurons):,} of {neurons.total:,} neurons; --limit 0 shows all", file=sys.stderr)
    return 0


def _ready(client: Client, options: argparse.Namespace) -> int:
    if options.wait:
        client.wait_until_ready(options.wait)
    elif not client.ready():
        print(
            f"{only_url(options)} is not ready yet: its models are not loaded (use --wait SECONDS to wait)",
            file=sys.stderr,
        )
        return 1
    print(f"{only_url(options)} is ready")
    return 0


_COMMANDS = {"predict": _predict, "mice": _mice, "mouse": _mouse, "neurons": _neurons, "ready": _ready}


def _format_error(error: V1TError) -> str:
    lines = [f"v1t: {on_command_line(error.message)}"]
    for name in ("got", "expected", "hint"):
        value = getattr(error, name)
        if value is not None:
            text = str(value) if name == "got" else on_command_line(str(value))
            lines.append(f"  {name:<9} {text}")
    if isinstance(error, ServerError) and error.request_id:
        lines.append(f"  {'request':<9} {error.request_id} (HTTP {error.status})")
    return "\n".join(lines)


def _parser(*, experiments: bool = True) -> Parser:
    """The parser of `v1t`; without the experiments, which take long to import, if the verb is none of theirs."""
    text = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="v1t",
        description="Predict the responses of mouse visual cortex with a digital twin.",
        epilog=_EXAMPLES,
        formatter_class=text,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"v1t-client {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, summary: str, epilog: str | None = None, *, server: Literal["url", "receipt"] | None = "url"
    ) -> Parser:
        made: Parser = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=text,
            allow_abbrev=False,
        )
        if server == "receipt":
            made.add_server_options(None, "that of the receipt")
        elif server == "url":
            default = os.environ.get("V1T_URL") or _DEFAULT_URL
            made.add_server_options(default, f"$V1T_URL, else {_DEFAULT_URL}")
        # Other users of the machine can read command lines, so the key is taken from the environment only.
        made.set_defaults(api_key=os.environ.get("V1T_API_KEY") or None)
        return made

    _add_predict(verb("predict", "predict the responses of a mouse's neurons to one or more images", _PREDICT_EXAMPLES))
    verb("mice", "list the mice that the server serves")
    mouse = verb("mouse", "show a mouse: image size, input statistics, test scores, licence")
    mouse.add_argument("mouse", metavar="MOUSE", help="mouse id, from `v1t mice`")
    mouse.add_argument("--model", help="bundle name, if several bundles contain this mouse")
    _add_neurons(verb("neurons", "list a mouse's neurons by position and score"))
    ready = verb("ready", "check whether the server is ready (exit code 0) or not (1)")
    ready.add_argument("--wait", type=positive, metavar="SECONDS", help="wait up to this long")
    if experiments:
        from v1t_client._cli.experiments import add_verbs

        add_verbs(verb)
    return parser


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="PNG, JPEG or .npy file, a stack of images as .npy, or a folder"
    )
    parser.add_argument(
        "--dataset", metavar="PATH", help="instead: a set of images of any size, as .zarr, .npy or a folder"
    )
    parser.add_argument(
        "--mouse", required=True, action="append", help="mouse id, from `v1t mice`; may be repeated, or '*' for all"
    )
    add_bundle(parser)
    inputs = parser.add_argument_group("behaviour, in the recording's own units")
    add_behavior(inputs)
    answer = parser.add_argument_group("answer")
    answer.add_argument("--neuron-ids", type=integers, metavar="ID,ID,...", help="only these neurons, in this order")
    answer.add_argument("--units", choices=("standardized", "raw"), default="standardized", help="default: %(default)s")
    answer.add_argument("--spread", action="store_true", help="also the std over the ensemble's members")
    answer.add_argument("--resize", choices=("fit", "fill", "crop"), help="how to fit an image of another size")
    answer.add_argument("--model", help="bundle name, if several bundles contain this mouse")
    answer.add_argument("--top", type=count, default=10, metavar="N", help="print the N strongest per image (10)")
    answer.add_argument("--output", type=Path, metavar="FILE", help="write all responses: .npy, .csv, .json or .zarr")
    answer.add_argument("--force", action="store_true", help="overwrite FILE")


def _add_neurons(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mouse", metavar="MOUSE", help="mouse id, from `v1t mice`")
    parser.add_argument("--model", help="bundle name, if several bundles contain this mouse")
    parser.add_argument("--score", metavar="NAME", help="which test score (single_trial_correlation)")
    parser.add_argument("--score-min", type=number, metavar="R", help="only neurons that score at least this")
    for axis in "xyz":
        for end in ("min", "max"):
            parser.add_argument(f"--{axis}-{end}", type=number, metavar="UM", help=f"cortical {axis}, um")
    parser.add_argument("--limit", type=count, default=20, metavar="N", help="show at most N (20); 0 shows all")
    parser.add_argument("--offset", type=count, metavar="N", help="skip the first N")
