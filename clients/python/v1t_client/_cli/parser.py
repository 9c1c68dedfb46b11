"""The parser of `v1t`: an option that is given twice extends the first, or is refused."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from v1t_client._options import count, positive, words

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """A parser whose options never replace one another, and that points to --help instead of printing the long usage.

    An option of a list (`nargs="+"`, or a type that gives a tuple, such as `12,99,7`) may be repeated, and then holds
    all values. Any other option with a value is refused when it is repeated. This is the default action, so that
    every option has it without asking.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: set[argparse.Action] = set()
        for name in (None, "store"):
            self.register("action", name, _Store)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = set()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n  `{self.prog} --help` shows examples\n")

    def add_server_options(self, url: str | None, url_default: str) -> None:
        """Adds --url, --timeout and --retries.

        Args:
            url: the default. `url_default`: how --help describes it.
        """
        server = self.add_argument_group("server")
        text = url_default.replace("%", "%%")
        server.add_argument(
            "--url",
            type=words,
            default=None if url is None else words(url),
            help=f"address of the server (default: {text}); experiments and `predict` into .zarr divide their "
            "work among several: --url URL --url URL",
        )
        server.add_argument("--timeout", type=positive, default=60.0, metavar="SECONDS", help="for the whole call (60)")
        server.add_argument(
            "--retries", type=count, default=3, metavar="N", help="retries if the server is busy or unreachable (3)"
        )


class _Store(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        if self.option_strings:
            if self.nargs in ("+", "*"):  # `a,b c` of a type that gives tuples is a, b and c
                values = tuple(item for value in values for item in (value if isinstance(value, tuple) else (value,)))
            if self in parser.given:
                if not isinstance(values, tuple):
                    raise argparse.ArgumentError(self, "given twice; it takes one value")
                values = (*getattr(namespace, self.dest), *values)
            parser.given.add(self)
        setattr(namespace, self.dest, values)
