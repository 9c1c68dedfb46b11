"""`python -m server VERB`: bench, size. (The service itself is started by `bentoml serve`.)"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from server import paced
from server.errors import TwinError
from server.inference import benchmark as bench
from server.inference import sizing

EPILOG = """examples:
  python -m server bench exported_models/demo
  python -m server bench exported_models/mine --threads 2 --rounds 20
  python -m server bench http://127.0.0.1:3000 --paced 30 --minutes 5
  python -m server size exported_models/mine --users 30 --each 2 --within 0.3
  bentoml serve                                 # the service itself
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="What can be done with bundles on this machine, without the service.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    benchmark = verbs.add_parser(
        "bench",
        help="how fast a bundle runs here, and how fast it could; whether a closed loop is answered in time",
        description=bench.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_arguments(benchmark)
    paced.add_arguments(benchmark)
    sizing.add_arguments(
        verbs.add_parser(
            "size",
            help="how many users one server answers in time, and how many servers a lab needs",
            description=sizing.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    args = parser.parse_args(argv)
    try:
        if args.verb == "bench" and args.paced is not None:
            code = paced.run(args)
        else:
            code = {"bench": bench.run, "size": sizing.run}[args.verb](args)
        sys.stdout.flush()
        return code
    except TwinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # such as `python -m server bench | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
