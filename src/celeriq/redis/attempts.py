"""The attempts of one worker process, from the reading of a message to its one settlement."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace
from redis.exceptions import RedisError
from taskiq.message import TaskiqMessage

from celeriq import envelope, parts, record, signals
from celeriq.attempt import Attempt, Delivery
from celeriq.definition import Definition
from celeriq.envelope import VERSION, Envelope, for_retry, postponed, without_turn
from celeriq.errors import EncodeError, NotRegistered, WorkerLostError
from celeriq.middleware import Revocation
from celeriq.outcome import (
    Deferred,
    Failed,
    InLine,
    Outcome,
    Postponed,
    Released,
    Retrying,
    Revoked,
)
from celeriq.redis.chords import Counted
from celeriq.redis.history_entry import HistoryEntry, entry_of
from celeriq.redis.results import RedisResults
from celeriq.redis.revocations import names_of
from celeriq.redis.sending import Parcel
from celeriq.redis.settlement import Ending, persistently
from celeriq.steps import behind, bodies
from celeriq.task import Task

if TYPE_CHECKING:
    from celeriq.redis.streams import RedisBroker

logger = logging.getLogger(__name__)


class Attempts:
    """What runs here, and how each of it ends."""

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker
        self._later: set[asyncio.Task[None]] = set()
        self.running: dict[asyncio.Task[Any], Attempt] = {}

    # -- beginning -------------------------------------------------------------------------------------------------

    def begin(self, delivery: Delivery, read: Envelope, message: TaskiqMessage) -> None:
        """Called when a delivery was read: from here to its end, the asyncio task that did so is the attempt."""
        attempt = Attempt(engine=self._broker, delivery=delivery, envelope=read, message=message)
        attempt.become_current()
        running = asyncio.current_task()
        if running is not None:
            self.running[running] = attempt
            running.add_done_callback(lambda task: self._after_receiver(task, attempt))

    def _after_receiver(self, task: asyncio.Task[Any], attempt: Attempt) -> None:
        """The receiver is done. If somebody's hook raised, nothing was settled: do it from what is recorded."""
        self.running.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a middleware raised around task %s", attempt.message.task_name, exc_info=error)
        if attempt.outcome is None and error is not None and not attempt.begun:
            attempt.refuse(self._definition_of(attempt.envelope), error, self._broker.max_crashes)
        if attempt.outcome is not None and not isinstance(attempt.outcome, Released):
            if not attempt.settled:
                self.finish_later(self.settle(attempt))
        elif self._broker.queues.holds(attempt.delivery):
            self.finish_later(self.hand_back(attempt.delivery))

    def name_of(self, task: asyncio.Task[Any]) -> str | None:
        """What an asyncio task runs, `name[id]`; None if that is no attempt. Called in any thread."""
        attempt = self.running.get(task)
        return None if attempt is None else f"{attempt.message.task_name}[{attempt.message.task_id}]"

    # -- ending ----------------------------------------------------------------------------------------------------

    async def settle(self, attempt: Attempt) -> None:
        """End the attempt, once."""
        if attempt.settled or attempt.outcome is None or isinstance(attempt.outcome, Released):
            return
        if isinstance(attempt.outcome, InLine):
            self._broker.queues.forget(attempt.delivery)
            attempt.settled = True
            return
        asked_before, attempt.asked_to_settle = attempt.asked_to_settle, True
        if not asked_before:
            for settling in attempt.hooks.settling:
                settling(attempt)
            if attempt.next_steps:
                await self._publish(attempt)
        ours = await self._settle(self._ending_of(attempt, attempt.outcome)) or asked_before
        if not ours:
            name, task_id = attempt.message.task_name, attempt.message.task_id
            logger.warning("task %s[%s]: another worker has taken it over; nothing is written", name, task_id)
        attempt.settled = True
        if ours:
            await _tell_all(attempt)

    async def _publish(self, attempt: Attempt) -> None:
        """What follows is sent with the settlement; who wants to know of what is sent is told of it before (SIG-01)."""
        steps, chain = [step for step, _ in attempt.next_steps], attempt.envelope.chain
        # What is behind a header is told of with it, and this may be a later step of one of its parts.
        begins = steps if not chain or chain[0].members is not None else []
        told = [*steps, *bodies(begins)]
        before = [record.encode(one.headers) for one in told]
        for publishing in self._broker.sending_hooks().publishing:
            for step in told:
                await publishing(step)
        if [record.encode(one.headers) for one in told] != before:
            attempt.next_steps = [(step, envelope.encode(step, self._broker.max_payload)) for step in steps]

    async def _settle(self, ending: Ending) -> bool:
        written = await self._broker.settlement.settle(ending)
        self._broker.queues.forget(ending.delivery)
        return written

    def _ending_of(self, attempt: Attempt, outcome: Outcome) -> Ending:
        """The settlement that the outcome asks for."""
        records = [(attempt.envelope.id, attempt.stored)] if attempt.stored else []
        dead_because = ""
        if isinstance(outcome, Failed | Revoked):
            records += _records_of_later_steps(attempt.envelope, outcome, attempt.stored)
        if isinstance(outcome, Failed):
            dead_because = outcome.dead_because
        parcels = self._parcels_after(attempt, outcome)
        again = parcels[0] if isinstance(outcome, Retrying | Postponed | Deferred) else None
        return Ending(
            attempt.delivery,
            fenced=not attempt.acknowledged,
            records=records,
            parcels=parcels,
            dead_because=dead_because,
            history=b"" if isinstance(outcome, Deferred) else self._history(attempt, outcome),
            ticket="-" if isinstance(outcome, Deferred) else attempt.envelope.ticket,
            claim=_claim_after(attempt.envelope, again),
            counted=None if attempt.part is None else Counted.of(attempt.part, self._broker.queue_name),
        )

    def _parcels_after(self, attempt: Attempt, outcome: Outcome) -> list[Parcel]:
        if isinstance(outcome, Retrying):
            again = for_retry(attempt.envelope, outcome.changes, counted=outcome.counted)
            return [self._again(attempt, again, outcome.delay, outcome.at, outcome.changes)]
        if isinstance(outcome, Deferred):
            later = replace(attempt.envelope, ticket=attempt.ticket, **outcome.changes)
            return [self._again(attempt, later, at=outcome.at)]
        if isinstance(outcome, Postponed):
            again = postponed(attempt.envelope) if outcome.counted else without_turn(attempt.envelope)
            again.redelivered = again.redelivered or not outcome.counted
            return [self._again(attempt, again, outcome.delay)]
        return [
            Parcel(step.queue or self._broker.queue_name, encoded, step.priority, step.delay)
            for step, encoded in attempt.next_steps
        ]

    def _again(
        self,
        attempt: Attempt,
        again: Envelope,
        delay: float = 0.0,
        at: float | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Parcel:
        """It has been sent once, so no limit holds it back now."""
        delivery, said = attempt.delivery, changes or {}
        queue, priority = said.get("queue", delivery.queue), said.get("priority", delivery.priority)
        return Parcel(queue, record.encode(again), priority, delay, at)

    def _history(self, attempt: Attempt, outcome: Outcome) -> bytes:
        return entry_of(attempt, outcome, self._broker.history_share, self._broker.attempt_logs)

    def terminate(self, revoked: Collection[str]) -> None:
        """End what runs under one of these names (LIM-14); what has begun to commit is not ended."""
        mine = next((one for one in self._broker.middlewares if isinstance(one, Revocation)), None)
        for task, attempt in list(self.running.items()):
            if mine is not None and not names_of(attempt.envelope).isdisjoint(revoked) and mine.terminate(attempt):
                task.cancel()

    def cancel_all(self) -> None:
        """What runs is rolled back, what has begun to commit is not; again each second, for a body may swallow it."""
        for task in list(self.running):
            task.cancel()
        if self.running:
            asyncio.get_running_loop().call_later(1.0, self.cancel_all)

    # -- messages that are no attempt ------------------------------------------------------------------------------

    async def admit(self, delivery: Delivery) -> bool:
        """Whether it may run. One that killed too many workers is buried instead."""
        if delivery.crashes < self._broker.max_crashes:
            return self._broker.queues.holds(delivery)
        died = f"{delivery.crashes} workers died while they ran it"
        await self.bury(delivery, WorkerLostError(died))
        return False

    async def bury(self, delivery: Delivery, error: Exception) -> None:
        """A message that cannot be run is kept among the dead letters, not destroyed, and its task has failed."""
        logger.error("dead letter in queue %r: %s", delivery.queue, error)
        attempt = self._never_begun(delivery, error)
        if attempt is not None:
            for burying in attempt.hooks.burying:
                if (made := await burying(attempt)) is not None:
                    attempt.repeat(made)
            await self.settle(attempt)
            return
        records: list[tuple[str, bytes]] = []
        ticket, claim = "", None
        if task_id := envelope.head(delivery)[1]:
            records.append((task_id, record.encode(record.failure(task_id, error, 0.0))))
        counted: Counted | None = None
        with suppress(msgspec.DecodeError, ValueError):
            read = envelope.decode(delivery)
            records += _records_of_later_steps(read, Failed(error))
            ticket, claim = read.ticket, _claim_after(read, None)
            part = parts.failed(read, error)
            counted = None if part is None else Counted.of(part, self._broker.queue_name)
        history = record.encode(
            HistoryEntry(id=task_id, queue=delivery.queue, state="DEAD", error=record.describe(error))
        )
        await self._settle(
            Ending(
                delivery,
                records=records,
                dead_because=str(error),
                history=history,
                ticket=ticket,
                claim=claim,
                counted=counted,
            )
        )

    def _never_begun(self, delivery: Delivery, error: Exception) -> Attempt | None:
        """The failure of a task that is known here, of which whoever wants to know is told; None for other messages."""
        try:
            call = envelope.decode(delivery)
        except (msgspec.DecodeError, ValueError):
            return None
        definition = self._definition_of(call)
        if definition is None:
            return None
        attempt = Attempt(engine=self._broker, delivery=delivery, envelope=call, message=call.message())
        attempt.fail_unbegun(definition, error)
        return attempt

    def _definition_of(self, call: Envelope) -> Definition | None:
        task = self._broker.find_task(call.task)
        return task.definition if isinstance(task, Task) else None

    async def acknowledge(self, delivery: Delivery) -> None:
        """Called by Taskiq's receiver, and not only when a task has ended."""
        attempt = Attempt.current_or_none()
        if attempt is None or attempt.delivery is not delivery:
            await self._set_aside_unread(delivery)
        elif attempt.outcome is not None:
            await self.settle(attempt)
        elif attempt.begun:
            await self._acknowledge_cancelled(attempt)
        elif self._broker.find_task(attempt.message.task_name) is None:
            await self._park_unknown(attempt)
        else:
            attempt.acknowledged = await self._broker.settlement.settle(Ending(delivery, ticket="-"))
            if not attempt.acknowledged:
                # It runs elsewhere by now, and does not here: see `Attempt.run`.
                attempt.outcome = Released()

    async def _park_unknown(self, attempt: Attempt) -> None:
        name, task_id = attempt.message.task_name, attempt.message.task_id
        told = {"message": bytes(attempt.delivery), "name": name, "id": task_id, "exc": NotRegistered(name)}
        await signals.task_unknown.send(attempt.delivery.worker, **told)
        await self.park(attempt.delivery, name)

    async def park(self, delivery: Delivery, name: str) -> None:
        logger.warning("task %r is unknown here: its message waits for a worker that knows it", name)
        await persistently(lambda: self._broker.queues.park(delivery, name))

    async def _set_aside_unread(self, delivery: Delivery) -> None:
        version, _ = envelope.head(delivery)
        if version > VERSION:
            await self.park(delivery, envelope_name(version))
        else:
            error = EncodeError("undecodable: not a celeriq message")
            await signals.task_rejected.send(delivery.worker, message=bytes(delivery), exc=error)
            await self.bury(delivery, error)

    async def _acknowledge_cancelled(self, attempt: Attempt) -> None:
        """Leave the decision to `set_result`, which comes later and knows why; a foreign one would not tell us."""
        if not isinstance(self._broker.result_backend, RedisResults):
            attempt.end_from_outside(None, asyncio.CancelledError())
            await self.settle(attempt)

    # -- what is parked --------------------------------------------------------------------------------------------

    async def look_after_parked(self) -> None:
        """Take back what is known here by now, and bury what nobody has known for too long."""
        for delivery in await self._broker.queues.unpark(self._knows, self._broker.unknown_grace):
            version, _ = envelope.head(delivery)
            name = envelope.decode(delivery).task if version <= VERSION else envelope_name(version)
            await self.bury(delivery, NotRegistered(name))

    def _knows(self, name: str) -> bool:
        return name == envelope_name(VERSION) or self._broker.find_task(name) is not None

    # -- what ends later -------------------------------------------------------------------------------------------

    async def hand_back(self, delivery: Delivery) -> None:
        try:
            await self._broker.queues.hand_back(delivery)
        except (RedisError, OSError) as error:
            logger.warning("not handed back yet: %s", error)

    def finish_later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._later.add(task)
        task.add_done_callback(self._ended_later)

    def _ended_later(self, task: asyncio.Task[None]) -> None:
        self._later.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a message stays with this worker until it stops", exc_info=error)

    async def drain(self) -> None:
        """Settlements that a broken hook left to us are brought to their end."""
        while self._later:
            await asyncio.wait(self._later)


async def _tell_all(attempt: Attempt) -> None:
    for after in attempt.hooks.after:
        try:
            told = after(attempt)
            if told is not None:
                await told
        except Exception:
            logger.exception("a middleware raised after task %s; its outcome stays", attempt.envelope.task)


def envelope_name(version: int) -> str:
    """Under which envelopes of another version are parked; no task can be called so."""
    return f"(envelope {version})"


def _records_of_later_steps(
    failed: Envelope, outcome: Failed | Revoked, stored: bytes = b""
) -> list[tuple[str, bytes]]:
    """All later steps of a chain end with the step before them, as is `stored` of it, and are never sent (CERR-07)."""
    later = [step.id for step in behind(failed)]
    if not later:
        return []
    if isinstance(outcome, Revoked):
        return [(one, record.encode(record.revoked(one, outcome.error, 0.0))) for one in later]
    told = record.failure("", outcome.error, 0.0)
    if stored:
        told.traceback = record.decode(stored).traceback
    return [(one, record.encode(replace(told, task_id=one))) for one in later]


def _claim_after(call: Envelope, again: Parcel | None) -> tuple[str, str, int] | None:
    """What becomes of the key that a call has taken: what is to run `again` keeps it, what has ended gives it back."""
    claim = call.claim
    if claim is None or not claim.until_end:
        return None
    if again is None:
        return claim.key, call.id, 0
    wait = again.delay if again.at is None else max(0.0, again.at - time.time())
    return claim.key, call.id, max(1, round((wait + claim.period) * 1000))
