"""Errors and notes as the command line says them: what to type here, instead of an HTTP request or a line of Python."""

from __future__ import annotations

import re

__all__ = ["on_command_line"]

# What the server and the client say -> what to type. In this order: longer ones first.
_WORDS = (
    (r"resize=(fit|fill|crop)", r"--resize \1"),
    (r"\bstrict=true\b", "--strict"),
    (r"\b([Ll])eave strict out\b", r"\1eave --strict out"),
    (r"\bstate=(median|mean|rest|running)\b", r"--state \1"),
    (r"\bmodel: (\S)", r"--model \1"),
    (r"model=NAME", "--model NAME"),
    (r"GET /mice/(\{id\}|[^\s/.,;]+)/neurons", r"`v1t neurons \1`"),
    (r"GET /mice/(\{id\}|[^\s/.,;]+)", r"`v1t mouse \1`"),
    (r"GET /mice", "`v1t mice`"),
    (r"GET /readyz", "`v1t ready`"),
    (r"Send the header Authorization: Bearer <key>", "Set the environment variable V1T_API_KEY to your key"),
    (r"Authorization: Bearer <key>", "V1T_API_KEY=<key>"),
    (r"client\.predict_mice asks several mice", "Repeat --mouse for several mice"),
    (r"client\.mice\(\)", "`v1t mice`"),
    (r"Client\(timeout=\.\.\.\)", "--timeout SECONDS"),
    (r", or add force\b( to)?", r", or add --force\1"),
    (r"; another URL: Client\(url\), --url or V1T_URL", "; another address: --url or V1T_URL"),
    (r"curl -F image=@picture\.png", "v1t predict picture.png"),
)


def on_command_line(text: str) -> str:
    """The text with every hint as it is typed on the command line."""
    for pattern, typed in _WORDS:
        text = re.sub(pattern, typed, text)
    return text
