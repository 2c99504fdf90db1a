"""What the tasks of every system do."""

from __future__ import annotations

import asyncio
import time
from functools import cache

from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks.meter import Meter
from benchmarks.settings import Settings

settings = Settings.from_environment()
meter = Meter(settings.scratch)

ROWS = 1000
SLEEP = 0.05


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


def async_engine(**options: object) -> AsyncEngine:
    """A pool of as many connections as there are tasks at a time."""
    return create_async_engine(settings.database, **(options or {"pool_size": settings.concurrency, "max_overflow": 0}))


async def update(session: AsyncSession, number: int) -> None:
    """Select a row and change it; who calls commits."""
    item = (await session.execute(select(Item).where(Item.id == number % ROWS))).scalar_one()
    item.number += 1


def update_now(session: Session, number: int) -> None:
    item = session.execute(select(Item).where(Item.id == number % ROWS)).scalar_one()
    item.number += 1


async def noop(number: int) -> int:
    meter.tick()
    return number


async def sleep(number: int) -> int:
    await asyncio.sleep(SLEEP)
    meter.tick()
    return number


async def stamp(due_ns: int) -> int:
    meter.late(due_ns)
    return due_ns


@cache
def sessions_now(size: int) -> sessionmaker[Session]:
    """A pool of psycopg's connections, in the process that asks for it first: it does not survive a fork."""
    url = settings.database.replace("+asyncpg", "+psycopg")
    return sessionmaker(create_engine(url, pool_size=size, max_overflow=0))


def crud_now(number: int) -> int:
    with sessions_now(settings.concurrency).begin() as session:
        update_now(session, number)
    meter.tick()
    return number


def noop_now(number: int) -> int:
    meter.tick()
    return number


def sleep_now(number: int) -> int:
    time.sleep(SLEEP)
    meter.tick()
    return number


def stamp_now(due_ns: int) -> int:
    meter.late(due_ns)
    return due_ns
