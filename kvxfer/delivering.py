"""`Delivering`: the sockets that carry what outboxes hold to a collector, and its acknowledgements back."""

import contextlib
from collections.abc import Mapping
from typing import Final

from kvxfer.config import private_endpoint
from kvxfer.errors import PeerError
from kvxfer.outbox import Outbox
from kvxfer.transport import PublisherKeys, PublisherSockets
from kvxfer.wire import decode_ack, source_of_topic, topic, topic_of_ack


class Delivering:
    """Connects when there is something to send, and connects again when no answer comes. Nothing waits but `close`."""

    def __init__(self, endpoint: str, keys: PublisherKeys | None) -> None:
        """Have no socket yet."""
        self._endpoint = self._connects_to = endpoint
        self._keys = keys
        self._sockets: PublisherSockets | None = None
        self._heard: set[str] = set()
        self.num_refused = 0
        """How often ZeroMQ would not take a frame."""

    def move_to(self, endpoint: str) -> None:
        """Go over to another endpoint with the next exchange; from any thread."""
        self._endpoint = endpoint

    def exchange(self, outboxes: Mapping[str, Outbox], now: float) -> None:
        """Hear what is acknowledged to these, by source id, and hand over what the socket takes now."""
        self.hear(outboxes, now)
        if self._connects_to != self._endpoint:
            self._connects_to = self._endpoint
            self.close(0)
            for outbox in outboxes.values():
                outbox.send_again()
        if any(outbox.has_frame for outbox in outboxes.values()):
            sockets = self._connected(outboxes)
            if not all(_send(sockets, outbox, now) for outbox in outboxes.values()):
                self.num_refused += 1

    def hear(self, outboxes: Mapping[str, Outbox], now: float) -> None:
        """Hear what is acknowledged to these; what was not in time is to be sent again."""
        for frame in self._sockets.acks() if self._sockets is not None else ():
            with contextlib.suppress(PeerError):
                outbox = outboxes.get(source_of_topic(topic_of_ack(frame)))
                if outbox is not None:
                    outbox.acknowledge(decode_ack(frame), now)
        overdue = [outbox for outbox in outboxes.values() if outbox.tick(now)]
        if overdue:
            # Who holds the other end may be a child that was forked from a collector which is gone, and read nothing:
            # the heartbeat takes 20 s to notice, a new connection none.
            self.close(0)

    def _connected(self, outboxes: Mapping[str, Outbox]) -> PublisherSockets:
        if self._sockets is None:
            private = self._connects_to == private_endpoint()
            self._sockets = PublisherSockets(self._connects_to, self._keys, private=private)
        for source_id in outboxes.keys() - self._heard:
            self._sockets.listen(topic(source_id))
        self._heard |= outboxes.keys()
        return self._sockets

    def abandon(self) -> None:
        """In a forked child: leave the parent's sockets alone."""
        if self._sockets is not None:
            _abandoned.append(self._sockets)
            self._sockets, self._heard = None, set()

    def close(self, linger: float) -> None:
        """Close the sockets; frames handed over are still delivered within ``linger`` seconds, in which this waits."""
        sockets, self._sockets, self._heard = self._sockets, None, set()
        if sockets is not None:
            sockets.close(linger)


def _send(sockets: PublisherSockets, outbox: Outbox, now: float) -> bool:
    """Hand over what the socket takes; whether it took all."""
    while (frame := outbox.next_frame) is not None:
        if not sockets.send(frame):
            return False
        outbox.sent(now)
    return True


# In a forked child, for ever: the io thread behind these sockets is the parent's, so not even closing them is safe.
_abandoned: Final[list[PublisherSockets]] = []
