"""The pools of all workers: published beside their beats, added up, and held against what the database allows."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import msgspec
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from celeriq.databases import Database, Place
from celeriq.errors import PoolTooLargeError
from celeriq.pool import DEFAULT_SIZE
from celeriq.redis.keys import Keys
from celeriq.redis.lease import SILENCE

if TYPE_CHECKING:
    from celeriq.redis.worker import Worker

logger = logging.getLogger(__name__)

PAUSE = 0.1
"""Seconds between two looks at who beats."""


@dataclass(frozen=True, slots=True)
class Family:
    """The processes of one `celeriq worker`, each with the same pools."""

    name: str
    size: int


class Published(msgspec.Struct, kw_only=True):
    """What a worker process says of itself; a later version may add fields."""

    pools: dict[str, int]
    """The most connections that it may have, by `Place`."""

    family: str = ""

    def of_server(self, server: str) -> int:
        return sum(count for place, count in self.pools.items() if Place.read(place).server == server)


async def published_pools(client: Redis, keys: Keys) -> dict[str, Published]:
    """By worker; of dead ones as well, until they are given up."""
    return _read(cast("dict[bytes, bytes]", await client.hgetall(keys.pools)))


def forget_pools(client: SyncRedis, keys: Keys) -> None:
    """Of those who do not beat. Nobody publishes before a first beat."""
    published = cast("list[bytes]", client.hkeys(keys.pools))
    beating = set(cast("list[bytes]", client.hkeys(keys.beats)))
    if gone := [worker for worker in published if worker not in beating]:
        client.hdel(keys.pools, *gone)  # pyright: ignore[reportArgumentType] - bytes are fine


class Fitting:
    """Opens the databases of a starting worker with pools for which there is room beside those of all others.

    `at_a_time`: how many tasks run here at a time; None if only Taskiq knows.
    `family`: whose process this is; None under Taskiq's worker, which nobody tells.
    `lease`: seconds; who does not beat for most of it is dead, and its pools are nobody's.
    """

    def __init__(
        self,
        databases: Sequence[Database],
        worker: Worker,
        client: Redis,
        keys: Keys,
        *,
        at_a_time: int | None,
        family: Family | None,
        lease: float,
    ) -> None:
        self._databases = databases
        self._worker = worker
        self._client = client
        self._keys = keys
        self._at_a_time = at_a_time or DEFAULT_SIZE
        self._family = family
        self._processes = 1 if family is None else family.size
        self._silence = lease * SILENCE

    async def fit(self) -> None:
        """Leave the databases open with what fits, and published.

        Where it does not fit, a process of `celeriq worker` raises `PoolTooLargeError`, and any other one lowers its
        pools and says so.
        """
        allowed = await self._ask()
        if not allowed:
            return
        earlier, lowered = await self._publish(), False
        for server, most in allowed.items():
            wanted = self._processes * self._own(server)
            others = await self._of_living(earlier, server, most - wanted)
            if wanted + others <= most:
                continue
            if self._family is not None:
                raise PoolTooLargeError(self._refusal(server, most, others))
            logger.warning("%s; this one takes what is left", self._refusal(server, most, others))
            await self._lower(server, most - others)
            lowered = True
        if lowered:
            await self._publish()

    async def _ask(self) -> dict[str, int]:
        """What each server allows, by its name; pools whose size nobody has said are given theirs."""
        allowed: dict[str, int] = {}
        for database in self._databases:
            if database.place is None or (most := await database.allowed()) is None:
                continue
            allowed[database.place.server] = most
            if database.advice.size is None:
                await self._suggest(database, most)
        return allowed

    async def _suggest(self, database: Database, most: int) -> None:
        """Half of what the server allows at the most, for all processes: the API needs connections, too, and while
        one worker takes another's place both have theirs.
        """
        servers = Counter(one.place.server for one in self._databases if one.place is not None)
        place = database.place
        assert place is not None
        share = most // 2 // self._processes // servers[place.server]
        size = min(self._at_a_time, database.pool.largest_size(share))
        if size < self._at_a_time:
            told = "%d tasks at a time share a pool of %d connections: PostgreSQL %s allows %d in all"
            logger.info(told, self._at_a_time, size, place.server, most)
        await database.open(replace(database.pool, size=size))

    async def _publish(self) -> dict[str, Published]:
        """Say what the pools are; answers with those that were published before. Who comes later sees this one."""
        pools: Counter[str] = Counter()
        for database in self._databases:
            if database.place is not None:
                pools[str(database.place)] += database.connections(self._at_a_time)
        name = "" if self._family is None else self._family.name
        encoded = msgspec.json.encode(Published(pools=dict(pools), family=name))
        self._worker.publish_pools(encoded)
        async with self._client.pipeline(transaction=True) as together:
            together.hset(self._keys.pools, self._worker.name, encoded)  # pyright: ignore[reportArgumentType]
            together.hgetall(self._keys.pools)
            _, published = cast("tuple[int, dict[bytes, bytes]]", await together.execute())
        return {
            worker: said
            for worker, said in _read(published).items()
            if worker != self._worker.name and not (name and said.family == name)
        }

    async def _of_living(self, earlier: Mapping[str, Published], server: str, room: int) -> int:
        """How many connections those of the `earlier` workers have who live.

        If all fit into the `room`, nobody asks who lives. Else each has as long to beat as any observer gives it; who
        was told to stop does not count.
        """
        clock = asyncio.get_running_loop().time
        beats = await self._beats()
        undecided, until = {worker: beats.get(worker) for worker in earlier}, clock() + self._silence
        alive: set[str] = set()
        while True:
            published, beats = await published_pools(self._client, self._keys), await self._beats()
            alive |= {worker for worker, beat in undecided.items() if beats.get(worker, beat) != beat}
            undecided = {worker: beat for worker, beat in undecided.items() if worker in beats and worker not in alive}
            present = {worker for worker in (*alive, *undecided) if worker in published and worker in beats}
            if clock() > until:
                present &= alive
                undecided = {}
            sum_of_present = sum(published[worker].of_server(server) for worker in present)
            if sum_of_present <= room or not undecided:
                return sum_of_present
            await asyncio.sleep(PAUSE)

    async def _beats(self) -> dict[str, str]:
        beats = cast("dict[bytes, bytes]", await self._client.hgetall(self._keys.beats))
        leaving = cast("set[bytes]", await self._client.smembers(self._keys.leaving))
        return {worker.decode(): beat.decode() for worker, beat in beats.items() if worker not in leaving}

    def _own(self, server: str) -> int:
        return sum(database.connections(self._at_a_time) for database in self._on(server))

    def _on(self, server: str) -> list[Database]:
        return [one for one in self._databases if one.place is not None and one.place.server == server]

    async def _lower(self, server: str, left: int) -> None:
        """Share out what is `left`, as far as the application listens."""
        wanted = {database.name: database.connections(self._at_a_time) for database in self._on(server)}
        for database in self._on(server):
            share = max(1, left * wanted[database.name] // sum(wanted.values()))
            await database.open(database.pool.within(share))
            if database.connections(self._at_a_time) > share:
                told = "database %r has up to %d connections all the same: open it with **pool.engine_options()"
                logger.warning(told, database.name, database.connections(self._at_a_time))

    # -- what is said ----------------------------------------------------------------------------------------------

    def _refusal(self, server: str, most: int, others: int) -> str:
        own, count = self._own(server), self._processes
        processes = f"{count} processes x {own} connections = {count * own}" if count > 1 else f"{own} connections"
        beside = f", and other workers have {others}" if others else ""
        return f"{processes}{beside}; PostgreSQL {server!r} allows {most}: {self._remedy(server, most - others)}"

    def _remedy(self, server: str, left: int) -> str:
        size = left // self._processes // len(self._on(server))
        if size < 1:
            return "no pool fits, so stop other workers, or raise max_connections"
        size, said = self._on(server)[0].advice.largest_size(size), list[str]()
        if self._family is not None and all(database.advice.size is None for database in self._on(server)):
            said.append(f"-c {size}")
        if 0 < (fewer := left // self._own(server)) < self._processes:
            said.append(f"--workers {fewer}")
        return f"say {', or '.join([*said, f'PoolAdvice(size={size})', 'raise max_connections'])}"


def _read(published: Mapping[bytes, bytes]) -> dict[str, Published]:
    """What this version understands."""
    found: dict[str, Published] = {}
    for worker, said in published.items():
        try:
            found[worker.decode()] = msgspec.json.decode(said, type=Published)
        except msgspec.DecodeError as error:
            logger.debug("pools that are not understood: %s", error)
    return found
