"""Who lives: every worker beats a counter, and everyone watches everyone's.

There are no expiring keys and no wall clocks: a Redis that was away for a minute would have expired every worker, and
clocks differ. A worker is dead when an observer has seen no new beat for most of a lease, by its own monotonic clock
and on one unbroken connection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celeriq.redis.keys import Keys

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 10
LONGEST_PAUSE = 2.0

SILENCE = 0.8
"""The part of a lease after which a silent worker is dead. With the pauses between beats, and between looks at them,
its messages are handed back before the lease is over."""

NEVER = "none"
"""The beat of a worker that holds messages and has none."""

Holders = Callable[[Redis], set[str]]
"""Who holds messages."""

Recover = Callable[[Redis, str, str], None]
"""What to do with a dead worker: called with the connection, its name and its last beat."""


class Lease(threading.Thread):
    """Beats for one worker and watches the others, in a thread: a blocked event loop is still alive."""

    def __init__(
        self,
        client: Callable[[], Redis],
        keys: Keys,
        seconds: float,
        holders: Holders,
        recover: Recover,
        *,
        each_turn: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(name="celeriq-lease", daemon=True)
        self._client = client
        self._keys = keys
        self._seconds = seconds
        self._holders = holders
        self._recover = recover
        self._each_turn = each_turn
        self._clock = clock
        self._silence = seconds * SILENCE
        self._observed = Observed(self._silence)
        self._stopping = threading.Event()
        self.worker = ""
        self.pools = b""
        """What its pools are, said again with each beat: whoever has given it up for dead has forgotten it."""
        self.proven = clock()
        self.lapses = 0
        """How often it was too late with the proof that it lives: each time others may have given it up."""

    @property
    def lost(self) -> bool:
        """Whether no beat has reached Redis for so long that others may have given this worker up."""
        return self._clock() - self.proven > self._silence

    def begin(self, worker: str) -> None:
        """Count the lease from now, under this name."""
        self.worker = worker
        self.proven = self._clock()

    def run(self) -> None:
        pause = min(self._seconds / BEATS_PER_LEASE, LONGEST_PAUSE)
        client: Redis | None = None
        while not self._stopping.wait(pause):
            self._each_turn()
            try:
                client = client or self._client()
                self._turn(client)
            except Exception as error:  # noqa: BLE001 - whatever it is, this thread must go on beating
                logger.debug("no beat: %r", error)
                # What was seen before the connection broke proves nothing any more.
                self._observed.forget()
                _close(client)
                client = None
        _close(client)

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join()

    def _turn(self, client: Redis) -> None:
        # Before the beat is sent, so that the proof is never younger than the beat.
        now, worker = self._clock(), self.worker
        client.hincrby(self._keys.beats, worker, 1)
        if self.pools:
            client.hset(self._keys.pools, worker, self.pools)  # pyright: ignore[reportArgumentType] - bytes are fine
        if self.lost:
            self.lapses += 1
        self.proven = now
        beats = cast("dict[bytes, bytes]", client.hgetall(self._keys.beats))
        seen = dict.fromkeys(self._holders(client), NEVER) | {k.decode(): v.decode() for k, v in beats.items()}
        for name, beat in self._observed.silent(seen, self._clock()):
            if name != worker:
                logger.warning("worker %s has not beaten for %g s: its messages are handed back", name, self._silence)
                self._recover(client, name, beat)


class Observed:
    """When each worker's beat was last seen to be new."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[str, tuple[str, float]] = {}

    def silent(self, beats: dict[str, str], now: float) -> list[tuple[str, str]]:
        """Take in what is read at `now`; answers with the workers, and their last beats, that are dead."""
        self._seen = {
            name: seen if (seen := self._seen.get(name)) and seen[0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        return [(name, beat) for name, (beat, since) in self._seen.items() if now - since > self._seconds]

    def forget(self) -> None:
        self._seen.clear()


def _close(client: Redis | None) -> None:
    if client is not None:
        client.close()


def patient_client(url: str, **connection: Any) -> Redis:
    """A connection that is never quietly made anew, for what is observed on it must be unbroken."""
    options: dict[str, Any] = {"single_connection_client": True, "retry": Retry(NoBackoff(), 0), **connection}
    return Redis.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType] - untyped in redis-py
