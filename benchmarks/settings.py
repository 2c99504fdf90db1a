"""What a measurement tells the processes that it starts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

PREFIX = "BENCH_"


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for every system."""

    redis: str
    """`redis://` URL of the Valkey that is emptied before each measurement."""
    database: str
    """SQLAlchemy's URL, with asyncpg."""
    folder: str
    """Where the meter writes."""
    variant: str = ""
    """Which of the ways that a system's module knows."""
    concurrency: int = 100
    """Tasks at a time, in one worker process."""
    processes: int = 1
    results: bool = True

    def environment(self) -> dict[str, str]:
        given = {name: str(int(value) if isinstance(value, bool) else value) for name, value in asdict(self).items()}
        return {PREFIX + name.upper(): value for name, value in given.items()}

    @classmethod
    def from_environment(cls) -> Self:
        given = {name: os.environ[PREFIX + name.upper()] for name in cls.__dataclass_fields__}
        return cls(
            redis=given["redis"],
            database=given["database"],
            folder=given["folder"],
            variant=given["variant"],
            concurrency=int(given["concurrency"]),
            processes=int(given["processes"]),
            results=given["results"] == "1",
        )

    @property
    def libpq(self) -> str:
        """The database as libpq and asyncpg take it."""
        return self.database.replace("postgresql+asyncpg://", "postgresql://")

    @property
    def scratch(self) -> Path:
        return Path(self.folder)
