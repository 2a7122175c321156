"""A bare ASGI application that records a transfer per request, for a web server of its own process to run.

The first requests are flushed, later ones wait. With ``KVXFER_TEST_CLOSES`` 1 the lifespan's end closes the publisher.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from workers import CONNECTOR, record_into

from kvxfer.publisher import StatsPublisher

FLUSHED_REQUESTS = 3

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """Publishes from the lifespan's start on."""

    publisher: StatsPublisher
    num_requests = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await (self.live(receive, send) if scope["type"] == "lifespan" else self.respond(send))

    async def live(self, receive: Receive, send: Send) -> None:
        await receive()
        self.publisher = StatsPublisher(CONNECTOR, flush_seconds=600)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if os.environ["KVXFER_TEST_CLOSES"] == "1":
            self.publisher.close(20)
        await send({"type": "lifespan.shutdown.complete"})

    async def respond(self, send: Send) -> None:
        record_into(self.publisher.stats, 1)
        self.num_requests += 1
        if self.num_requests == FLUSHED_REQUESTS:
            self.publisher.flush(timeout=20)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


app = Application()
