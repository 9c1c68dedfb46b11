"""The command line: `python -m reliability RUN`, with the repository's root and tests/ on the Python path."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support.live_server import ROOT

from reliability import attack, drain, files, fuzz, kill, load, overload, replicas, soak, swap
from reliability.tally import Report

Run = Callable[[], Report]
LOAD = ("load", "overload", "kill", "drain", "swap", "files")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reliability",
        description="Long tests of a live server on loopback. Each starts and stops a server, and prints Markdown. "
        "The exit code is 1 if there was a problem.",
        epilog="example: python -m reliability load --seconds 10 --only drain",
    )
    runs = parser.add_subparsers(dest="run", required=True, metavar="RUN")
    for name, seconds, text in (
        ("load", 300, f"{', '.join(LOAD)}, one after another; takes about twice the given time"),
        (
            "soak",
            900,
            "good and bad requests, disconnects and reloads at once; measures the growth of the worker's memory",
        ),
    ):
        timed = runs.add_parser(name, help=f"{text} (default: {seconds} s)", description=text)
        timed.add_argument("--seconds", type=float, default=seconds, help="duration (default: %(default)s)")
    runs.choices["soak"].add_argument("--figure", type=Path, help="also draw the memory over time")
    runs.choices["load"].add_argument("--only", choices=LOAD, help="run only this part")
    attacked = runs.add_parser("attack", help="what clients without a key can send, beside honest clients")
    attacked.add_argument("--seconds", type=float, default=15, help="duration of each attack (default: %(default)s)")
    attacked.add_argument("--only", nargs="*", default=[], help="run only attacks whose names have one of these words")
    attacked.add_argument("--checkout", type=Path, default=ROOT, help="a checkout whose server is attacked instead")
    attacked.add_argument("--clients", type=int, default=0, help="attackers at the same time (default: each its own)")
    fuzzed = runs.add_parser("fuzz", help="send broken requests of every kind")
    fuzzed.add_argument("--cases", type=int, default=10_000, help="number of requests (default: %(default)s)")
    replicated = runs.add_parser("replicas", help="kill, drain, hang and roll out three servers behind HAProxy")
    replicated.add_argument("--rounds", type=int, default=6, help="rounds of these, at least (default: %(default)s)")
    replicated.add_argument("--requests", type=int, default=0, help="more rounds, until so many are answered")
    for one in runs.choices.values():
        one.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    args = parser.parse_args()
    if args.run == "soak":
        return _print("soak", lambda: soak.run(seconds=args.seconds, seed=args.seed, figure=args.figure))
    if args.run == "attack":
        options = {"only": args.only, "checkout": args.checkout.resolve(), "clients": args.clients, "seed": args.seed}
        return _print("attack", lambda: attack.run(seconds=args.seconds, **options))
    if args.run == "fuzz":
        return _print("fuzz", lambda: fuzz.run(cases=args.cases, seed=args.seed))
    if args.run == "replicas":
        return _print("replicas", lambda: replicas.run(rounds=args.rounds, requests=args.requests, seed=args.seed))
    is_long = args.seconds >= 120
    parts: dict[str, Run] = {
        "load": lambda: load.run(seconds=args.seconds, seed=args.seed),
        "overload": lambda: overload.run(seconds=min(60, args.seconds / 2), seed=args.seed),
        "kill": lambda: kill.run(kills=10 if is_long else 1, seed=args.seed),
        "drain": lambda: drain.run(seconds=min(20, args.seconds / 2), seed=args.seed),
        "swap": lambda: swap.run(swaps=100 if is_long else 10, seed=args.seed),
        "files": lambda: files.run(rounds=3 if is_long else 1, seed=args.seed),
    }
    return max(_print(name, run) for name, run in parts.items() if args.only in (None, name))


def _print(name: str, run: Run) -> int:
    start = time.monotonic()
    report = run()
    print(f"### {name.capitalize()}\n\n{report.text}\n")
    for problem in report.problems:
        print(f"- PROBLEM: {problem}")
    print(
        f"{'Failed' if report.problems else 'No problems'}, after {time.monotonic() - start:.0f} s.\n",
        flush=True,
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
