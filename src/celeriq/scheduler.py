"""The scheduler: what is due is sent, by `taskiq scheduler` or by `celeriq scheduler`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import tzinfo
from typing import Any

from taskiq import TaskiqScheduler

from celeriq import schedule_rows as rows
from celeriq.declarations import checked, declared_by_tasks, sync
from celeriq.errors import SessionsMissingError
from celeriq.firing import Clock, Firing
from celeriq.redis.streams import RedisBroker
from celeriq.schedule_calls import ScheduledCalls
from celeriq.schedule_entry import read_beat_schedule
from celeriq.schedules import Schedules
from celeriq.session import transaction
from celeriq.wall_clock import zone_name

logger = logging.getLogger(__name__)

LOOK_AGAIN = 1.0
"""Seconds after which schedules are looked at anew: somebody may have edited them."""

BUSY = 0.05
"""Seconds until the next look where another scheduler deals with what is due."""

LONGEST_PAUSE = 5.0
"""Seconds between two tries while the database does not answer."""


class Scheduler(TaskiqScheduler):
    """Sends tasks when their schedules are due: `taskiq scheduler broker:scheduler tasks`.

    Any number of them may run beside each other, and each tick fires once: a schedule is a row of the database, and
    its next tick and its calls are one transaction (BEAT-02). It also sends what waits in the outbox.

    `beat_schedule`: Celery's, as it is (BEAT-01), beside what tasks say with their option `schedule`.
    `tz`: the time zone of crontabs that name none, Celery's `timezone` (BEAT-07). Defaults to UTC.
    `tasks_elsewhere`: whether schedules may call tasks that are not registered here. Defaults to False: the name of an
    unknown task is a mistake that is told when the scheduler starts.
    `clock`: says what time it is. Defaults to the clock of the database, so that all machines agree.

    Raises `ScheduleError` for an entry that means nothing.
    """

    broker: RedisBroker

    def __init__(
        self,
        broker: RedisBroker,
        *,
        beat_schedule: Mapping[str, Mapping[str, Any]] | None = None,
        tz: str | tzinfo = "UTC",
        tasks_elsewhere: bool = False,
        clock: Clock = rows.now,
    ) -> None:
        super().__init__(broker, [])
        self._tz = zone_name(tz)
        self._beat = read_beat_schedule(beat_schedule or {}, tz=self._tz)
        self._calls = ScheduledCalls(broker, tasks_elsewhere=tasks_elsewhere)
        self._clock = clock
        self._firing = Firing(broker, self._calls, clock)
        self._ticking: asyncio.Task[None] | None = None
        self.schedules = Schedules(broker, self._calls, self._tz, clock)
        """What there is, and changing it, also where no scheduler runs: in an API."""

    async def startup(self) -> None:
        """Write down what the code declares, and begin.

        Raises `ScheduleError` for a schedule that cannot run, `TablesMissingError`, `SessionsMissingError`, and what
        the database raises while it is not there.
        """
        self.broker.is_scheduler_process = True
        await super().startup()
        try:
            await self._declare()
        except BaseException:
            await self.broker.shutdown()
            raise
        self._ticking = asyncio.create_task(self._tick())

    async def shutdown(self) -> None:
        """End; a transaction that is being committed is brought to its end, any other is rolled back."""
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
            self._ticking = None
        await super().shutdown()

    async def _declare(self) -> None:
        entries = checked([*self._beat, *declared_by_tasks(self.broker, self._tz)], self._calls)
        try:
            sessions = self.broker.sessions
        except SessionsMissingError as error:
            raise SessionsMissingError(
                "schedules are rows of the database: call RedisBroker(...).with_sessions(open_sessions)"
            ) from error
        async with transaction(sessions) as session:
            await sync(session, self.broker.namespace, entries, self._calls, await self._clock(session))
        logger.info("%d schedules are declared", len(entries))

    async def _tick(self) -> None:
        """For ever: whatever happens, others must be able to rely on the next look."""
        failures = 0
        while True:
            try:
                pause = await self._look()
                failures = 0
            except Exception as error:  # noqa: BLE001 - the database may be away, and come back
                failures += 1
                pause = min(LONGEST_PAUSE, 0.1 * 2**failures)
                logger.warning("no schedule can be looked at, next try in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """Fire what is due; seconds until the next look."""
        left = await self._firing.seconds_left()
        if left is not None and left <= 0:
            await self._firing.fire_all()
            return LOOK_AGAIN if self._firing.puts_off else BUSY
        return LOOK_AGAIN if left is None else min(left, LOOK_AGAIN)
