"""The command line: `python -m reliability RUN`, from the repository's root with tests/ on the path, as make does."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from reliability import drain, kill, load, overload
from reliability.place import Report

Run = Callable[[], Report]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reliability",
        description="Long runs against a live server on loopback, each of which starts it and stops by itself. "
        "Prints markdown; ends with 1 if anything was wrong.",
        epilog="example: python -m reliability load --seconds 10",
    )
    runs = parser.add_subparsers(dest="run", required=True, metavar="RUN")
    for name, seconds, text in (("load", 300, "load, overload, kill and drain, one after another"),):
        one = runs.add_parser(name, help=f"{text} (default: {seconds} s)")
        one.add_argument("--seconds", type=float, default=seconds, help="of the longest part (default: %(default)s)")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--only", help="one part, such as overload")
    args = parser.parse_args()
    parts: dict[str, dict[str, Run]] = {
        "load": {
            "load": lambda: load.run(seconds=args.seconds, seed=args.seed),
            "overload": lambda: overload.run(seconds=min(60, args.seconds / 5), seed=args.seed),
            "kill": lambda: kill.run(kills=5 if args.seconds >= 120 else 1, seed=args.seed),
            "drain": lambda: drain.run(seconds=min(10, args.seconds / 5), seed=args.seed),
        },
    }
    chosen = {name: run for name, run in parts[args.run].items() if args.only in (None, name)}
    if not chosen:
        parser.error(f"--only {args.only} is none of {', '.join(parts[args.run])}")
    return max(_print(name, run) for name, run in chosen.items())


def _print(name: str, run: Run) -> int:
    start = time.monotonic()
    report = run()
    print(f"### {name.capitalize()}\n\n{report.text}\n")
    for problem in report.problems:
        print(f"- WRONG: {problem}")
    print(
        f"{'Failed' if report.problems else 'All as it should be'}, after {time.monotonic() - start:.0f} s.\n",
        flush=True,
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
