"""`python -m server VERB`: bench. (The service itself is started by `bentoml serve`.)"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from server.errors import TwinError
from server.inference import benchmark as bench

EPILOG = """examples:
  python -m server bench exported_models/demo
  python -m server bench exported_models/mine --threads 2 --rounds 20
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
    bench.add_arguments(
        verbs.add_parser(
            "bench",
            help="how fast a bundle runs here, and how fast it could",
            description=bench.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    args = parser.parse_args(argv)
    try:
        return bench.run(args)
    except TwinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
