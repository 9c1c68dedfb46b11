"""A multipart form to its parts, in memory: no part is written to a temporary file."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.errors import MalformedBody, TooLarge, brief

__all__ = ["read_parts"]

_MAX_FIELDS = 100
_MAX_FIELD = 1024**2  # bytes of a part that is not a file


def read_parts(body: bytes, content_type: str, *, max_files: int) -> list[tuple[str, str | bytes]]:
    """The name of each part, with its text or the bytes of its file.

    Raises:
        TooLarge: there are too many parts, or a text part is too long.
        MalformedBody: the form is wrong in another way.
    """

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        headers = Headers({"content-type": content_type})
        parser = MultiPartParser(
            headers, whole(), max_files=max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD
        )
        parser.spool_max_size = len(body) + 1
        parser.parse().send(None)  # runs to its end: it awaits nothing but `whole`
    except StopIteration as done:
        form: FormData = done.value
        return [(name, _content(value)) for name, value in form.multi_items()]
    except MultiPartException as error:
        if "Too many" in error.message or "exceeded" in error.message:
            raise TooLarge("the form is too large", got=brief(error.message)) from None
        raise MalformedBody("the form cannot be read", got=brief(error.message)) from None
    except Exception as error:  # a fuzzed form may raise anything
        raise MalformedBody("the form cannot be read", got=brief(f"{type(error).__name__}: {error}")) from None
    raise AssertionError("the form parser awaits something else")


def _content(value: str | UploadFile) -> str | bytes:
    if isinstance(value, str):
        return value
    with value.file as file:
        return file.read()
