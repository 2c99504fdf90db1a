"""What a caller holds of a group that it sent (RES-11)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from taskiq.abc.broker import AsyncBroker

from celeriq.errors import ResultTimeoutError
from celeriq.result import AsTuple, AsyncResult, Revokes, assert_may_wait
from celeriq.waiting import first_told


@runtime_checkable
class Keeps(Protocol):
    """A result backend that keeps which results belong together."""

    async def save_group(self, group_id: str, told: Any) -> None: ...

    async def find_group(self, group_id: str) -> Any: ...

    async def delete_group(self, group_id: str) -> None: ...


class GroupResult:
    """The states and results of a group, in the order of its calls; of a chain with a group in it, one of these in
    their place.
    """

    def __init__(
        self,
        group_id: str,
        results: Sequence[AsyncResult[Any] | GroupResult],
        parent: AsyncResult[Any] | GroupResult | None = None,
        *,
        broker: AsyncBroker | None = None,
    ) -> None:
        self.id = group_id
        self.results = list(results)
        self.parent = parent
        """The step before the group in its chain."""
        self._broker = broker

    def __repr__(self) -> str:
        return f"<GroupResult {self.id} of {len(self.results)}>"

    @property
    def children(self) -> list[AsyncResult[Any] | GroupResult]:
        """The same as `results`."""
        return self.results

    def __iter__(self) -> Iterator[AsyncResult[Any] | GroupResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __bool__(self) -> bool:
        """A group of nothing is one, too."""
        return True

    def __getitem__(self, index: int) -> AsyncResult[Any] | GroupResult:
        return self.results[index]

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def get(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as callers know it
        propagate: bool = True,  # noqa: FBT001, FBT002 - as in Celery
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """What the calls returned, in their order. Raises what the first one to fail has raised, without waiting for
        the others, and `ResultTimeoutError` after `timeout` seconds for all of them; 0 looks once (RES-12, RES-13).

        With `propagate=False` exceptions stand in the list (RES-02). Inside a task see `AsyncResult.get`.
        """
        assert_may_wait(self.id, allowed=not disable_sync_subtasks)
        if timeout == 0 and not await self.ready():
            raise ResultTimeoutError(f"group {self.id} has not ended")
        try:
            async with asyncio.timeout(timeout or None):
                failed = await self.failure() if propagate else None
                if failed is None:
                    waits = (each.get(propagate=False, disable_sync_subtasks=False) for each in self.results)
                    values: list[Any] = await asyncio.gather(*waits)
                    return values
        except TimeoutError as error:
            raise ResultTimeoutError(f"group {self.id} has not ended within {timeout:g} s") from error
        raise failed

    join = get

    async def failure(self) -> BaseException | None:
        """What the first one to fail has raised, as soon as it has; None when all have succeeded."""
        return await first_told(each.failure() for each in self.results)

    async def failure_so_far(self) -> BaseException | None:
        """What the first one in order has raised that has failed by now."""
        for each in self.results:
            if (failed := await each.failure_so_far()) is not None:
                return failed
        return None

    # -- looking ---------------------------------------------------------------------------------------------------

    async def ready(self) -> bool:
        """Whether all have ended."""
        return all([await each.ready() for each in self.results])

    async def waiting(self) -> bool:
        """Whether any has not ended."""
        return not await self.ready()

    async def successful(self) -> bool:
        """Whether all have succeeded."""
        return all([await each.successful() for each in self.results])

    async def failed(self) -> bool:
        """Whether any has raised."""
        return any([await each.failed() for each in self.results])

    async def completed_count(self) -> int:
        """How many have succeeded: those that have failed do not count (RES-11)."""
        return sum([await each.successful() for each in self.results])

    def as_tuple(self) -> AsTuple:
        """Its id, that of the steps before it, and those of its results as plain data (RES-09)."""
        parent = None if self.parent is None else self.parent.as_tuple()
        return (self.id, parent), [each.as_tuple() for each in self.results]

    __json__ = as_tuple
    """What a task that returns it has as its result (ST-13)."""

    # -- changing --------------------------------------------------------------------------------------------------

    async def forget(self) -> None:
        """Delete what is stored of all (ST-21)."""
        for each in self.results:
            await each.forget()

    async def revoke(self, *, terminate: bool = False) -> None:
        """Keep all from running, at one moment; `terminate` ends those that run (LIM-15)."""
        if not isinstance(self._broker, Revokes):
            raise TypeError("to revoke a group, its broker is needed: it has none without any call")
        await self._broker.revoke(list(self.ids()), terminate=terminate)

    def ids(self) -> Iterator[str]:
        """Those of its tasks."""
        for each in self.results:
            yield from each.ids() if isinstance(each, GroupResult) else (each.id,)

    async def save(self) -> None:
        """Keep which results belong to it, as long as a result: see `restore` (RES-14)."""
        await _keeper(self._broker).save_group(self.id, self.as_tuple())

    async def delete(self) -> None:
        """Forget what `save` has kept."""
        await _keeper(self._broker).delete_group(self.id)

    @staticmethod
    async def restore(group_id: str, broker: AsyncBroker) -> GroupResult | None:
        """The group of this id, if it was saved and has not expired."""
        told = await _keeper(broker).find_group(group_id)
        return None if told is None else cast("GroupResult", result_from_tuple(told, broker))


def result_from_tuple(told: Sequence[Any], broker: AsyncBroker) -> Any:
    """The `AsyncResult` or `GroupResult` of which `as_tuple` has told, from wherever that was kept (RES-09)."""
    (own_id, parent), members = told
    before = None if parent is None else result_from_tuple(parent, broker)
    if members is None:
        found: AsyncResult[Any] = AsyncResult(own_id, broker=broker, parent=before)
        return found
    return GroupResult(own_id, [result_from_tuple(each, broker) for each in members], before, broker=broker)


def _keeper(broker: AsyncBroker | None) -> Keeps:
    backend: Any = None if broker is None else broker.result_backend
    if not isinstance(backend, Keeps):
        raise TypeError("groups are kept by RedisResults, which a RedisBroker has")
    return backend
