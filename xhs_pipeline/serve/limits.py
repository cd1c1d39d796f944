"""What the service takes at most, and the guard that turns away what is more before it is read."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line's help needs these limits where the extra is not installed
    from xhs_pipeline.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MB = 2**20
WATCHED = ("/health", "/metrics")  # what tells of an overload is not turned away by it


@dataclass(frozen=True)
class Limits:
    """Sizes and times that a service is started with; all at least 1, times above 0.

    requests: answered at once, of any kind. body_mb: of one request. bodies_mb: of all requests at once, whose posts are in memory. body_seconds: to send one, and as long for its headers.
    request_posts: in one request. waiting_posts: taken and not yet answered; more are turned away. batch_posts: that the model
    is asked about at once (1: one at a time). gather_seconds: how long a post waits at most for company before the model, while others are being cleaned, and before cleaning, while the model is busy.
    request_seconds: until an answer. image_seconds: for one image or text in cleaning; the largest image admitted takes about
    2 s of a core (benchmarks/clean_posts). clean_processes: worker processes that clean.
    """

    requests: int = 512
    body_mb: int = 32
    bodies_mb: int = 256
    body_seconds: float = 30.0
    request_posts: int = 64
    waiting_posts: int = 256
    batch_posts: int = 32
    gather_seconds: float = 0.01
    request_seconds: float = 60.0
    image_seconds: float = 10.0
    clean_processes: int = 2

    def __post_init__(self) -> None:
        low = [f.name for f in fields(self) if getattr(self, f.name) < (1 if f.type is int else 0)]
        if low:
            raise ValueError(f"limits: {', '.join(low)} must be at least 1, or 0 for seconds")
        if self.waiting_posts < self.request_posts or self.bodies_mb < self.body_mb:
            raise ValueError("limits: waiting_posts must hold request_posts, and bodies_mb must hold body_mb, or no such request is ever taken")  # fmt: skip


class TooMuch(Exception):
    """A request that is turned away: HTTP status, code, sentence, and seconds after which to try again."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class Guard:
    """ASGI middleware around the whole service: reads each body itself, within the limits, and measures every request.

    What stands behind it gets a body that is complete and small enough, so a slow sender holds nothing but a connection.
    """

    def __init__(self, app: App, limits: Limits, metrics: "Metrics"):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._bytes = self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, held = time.monotonic(), 500, [0]

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._requests += 1
        try:
            body = await self._read(scope, receive, held)
            await self._app(scope, _replaying(body, receive), noting)
        except TooMuch as refused:
            self._metrics.refused.labels(refused.code).inc()
            await _refuse(refused, noting)
        finally:
            self._requests -= 1
            self._bytes -= held[0]
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.seconds.labels(route, str(status)).observe(time.monotonic() - began)

    async def _read(self, scope: Scope, receive: Receive, held: list[int]) -> bytes:
        """The whole body; `held` is how many of its bytes are counted.

        A body that is refused is read on and let go, for as long as sending one may take: the answer would not reach a sender
        who is still writing.
        """
        most = self._limits.body_mb * MB
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        refused = self._too_large() if declared.isdigit() and int(declared) > most else None
        if self._requests > self._limits.requests and scope["path"] not in WATCHED:
            refused = TooMuch(429, "too_many_requests", "too many requests are being answered just now", 1)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    more = message.get("more_body", False)
                    if refused:
                        continue
                    parts.append(message.get("body", b""))
                    held[0] += len(parts[-1])
                    self._bytes += len(parts[-1])
                    if held[0] > most:
                        refused = self._too_large()
                    elif self._bytes > self._limits.bodies_mb * MB:
                        refused = TooMuch(429, "too_many_bytes", "all requests together are too large just now", 1)
                    if refused:
                        parts.clear()
                        self._bytes -= held[0]
                        held[0] = 0
        except TimeoutError:
            seconds = self._limits.body_seconds
            refused = refused or TooMuch(408, "body_too_slow", f"the body did not come within {seconds:g} s")
        if refused:
            raise refused
        return b"".join(parts)

    def _too_large(self) -> TooMuch:
        why = f"the body is larger than {self._limits.body_mb} MB; send fewer or smaller images"
        return TooMuch(413, "body_too_large", why)


def _replaying(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(refused: TooMuch, send: Send) -> None:
    body = json.dumps({"error": refused.code, "message": refused.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]  # fmt: skip
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
