"""HTTP on a connection, before there is a request that the guard could turn away: how large headers are, and how long they take.

Bytes are h11's matter: it gives up on a request line with headers, or on a chunk's head or trailers, that are not complete after
64 kB, where httptools, which uvicorn takes wherever it is installed, goes on collecting. Time nobody limits, hence this class.
"""

import asyncio
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedHeaders(H11Protocol):
    """Closes a connection whose next request does not have all its headers `header_seconds` after they began, the first one's
    after it was opened. Between requests uvicorn's own time for idle connections holds.
    """

    def __init__(self, *given: Any, header_seconds: float, **named: Any):
        super().__init__(*given, **named)
        self._header_seconds = header_seconds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._mind_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._mind_headers()

    def connection_lost(self, error: Exception | None) -> None:
        self._forget()
        super().connection_lost(error)

    def _mind_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the headers are complete, or wrong
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._header_seconds, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def within(header_seconds: float) -> Any:
    """What uvicorn takes as `http`."""
    return partial(TimedHeaders, header_seconds=header_seconds)
