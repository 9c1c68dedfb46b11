"""One exchange with the server: a request out and a reply in, within a time and a size."""

from __future__ import annotations

from v1t_client._errors import ReplyInvalid
from v1t_client._http_library import httpx
from v1t_client._protocol.deadline import deadline_after
from v1t_client._protocol.http import send_options
from v1t_client._protocol.operations import Send

__all__ = ["exchange", "exchange_async", "read_bounded"]

_DECODED = frozenset({"content-encoding", "content-length", "transfer-encoding"})


def exchange(client: httpx.Client, step: Send) -> httpx.Response:
    """The reply to one request.

    Raises:
        httpx.RequestError: there is no complete reply within `step.timeout` seconds.
        ReplyInvalid: the reply is larger than any that was asked for.
    """
    with deadline_after(step.timeout), client.stream(**send_options(step)) as response:
        return read_bounded(response, step.request.most_bytes)


def read_bounded(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """The reply with its body. Raises ReplyInvalid if that has more bytes."""
    body = _Body(most_bytes)
    for part in response.iter_bytes():
        body.add(part)
    return body.of(response)


async def exchange_async(client: httpx.AsyncClient, step: Send) -> httpx.Response:
    """See `exchange`."""

    import anyio  # httpx, too, imports it with its first request

    try:
        with anyio.fail_after(step.timeout):
            async with client.stream(**send_options(step)) as response:
                body = _Body(step.request.most_bytes)
                async for part in response.aiter_bytes():
                    body.add(part)
                return body.of(response)
    except TimeoutError as error:
        raise httpx.ReadTimeout("the time of the whole call is over") from error


class _Body:
    """The body of a reply, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._content = bytearray()

    def add(self, part: bytes) -> None:
        self._content += part
        if len(self._content) > self._most_bytes:
            raise ReplyInvalid(
                "unexpected reply: it is larger than any answer to this request",
                got=f"over {self._most_bytes} bytes",
                hint="Is this the URL of a v1t server?",
            )

    def of(self, response: httpx.Response) -> httpx.Response:
        """The reply with this body."""
        return httpx.Response(
            response.status_code,
            headers=[(name, value) for name, value in response.headers.multi_items() if name.lower() not in _DECODED],
            content=bytes(self._content),
            request=response.request,
            extensions={name: value for name, value in response.extensions.items() if name == "reason_phrase"},
        )
