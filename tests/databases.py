"""Databases for tests: one template per run, migrated once; a copy of it per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import make_url

TEMPLATE = "celeriq_template"
ROOT = Path(__file__).parent.parent


def url_of(server: str, database: str) -> str:
    """The address of another database on the same server."""
    return make_url(server).set(database=database).render_as_string(hide_password=False)


async def connect(url: str) -> Any:
    parsed = make_url(url)
    host = parsed.query.get("host", parsed.host)
    return await asyncpg.connect(
        host=host, port=parsed.port, user=parsed.username, password=parsed.password, database=parsed.database
    )


def alembic_config(url: str) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def create_template(server: str) -> None:
    asyncio.run(execute(server, f'drop database if exists "{TEMPLATE}"', f'create database "{TEMPLATE}"'))
    migrate(url_of(server, TEMPLATE))


def migrate(url: str) -> None:
    command.upgrade(alembic_config(url), "head")


@asynccontextmanager
async def copy_of(server: str, template: str) -> AsyncGenerator[str]:
    """The address of a fresh copy of `template`, dropped at the end with whoever is still connected."""
    name = f"test_{uuid4().hex}"
    await execute(server, f'create database "{name}" template "{template}" strategy file_copy')
    try:
        yield url_of(server, name)
    finally:
        await execute(server, f'drop database "{name}" with (force)')


async def value_of(url: str, query: str, *arguments: Any) -> Any:
    """The first column of the first row."""
    connection = await connect(url)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


async def column_of(url: str, query: str, *arguments: Any) -> list[Any]:
    """The first column of every row."""
    connection = await connect(url)
    try:
        return [row[0] for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


async def execute(url: str, *statements: str) -> None:
    connection = await connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
