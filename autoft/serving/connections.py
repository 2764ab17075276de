"""Closes connections on which nothing goes on; uvicorn waits for ever for headers that do not end and for readers that do not read."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["timed_protocol"]


def timed_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol of HTTP, which ends a connection that has stood still from one look to the next.

    It stands still where no further request has begun, as when a header comes byte by byte, or where an answer is written and
    nothing of it was taken. A request that waits for its answer has a limit of its own.

    Args:
        seconds: between two looks.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class TimedProtocol(AutoHTTPProtocol):  # type: ignore[valid-type, misc] # one of two classes, by what is installed
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._seen: tuple[Any, int] | None = None
            self._next = self.loop.call_later(seconds, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._next.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            unread = self.transport.get_write_buffer_size()
            answering = self.cycle is not None and not self.cycle.response_complete
            now = (self.cycle, unread)
            if now == self._seen and (unread or not answering):
                self.transport.abort()
                return
            self._seen = now
            self._next = self.loop.call_later(seconds, self._look)

    return TimedProtocol
