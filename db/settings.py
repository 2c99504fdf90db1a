from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class DatabaseSettings(BaseSettings):
    """Where the database is; `DB_URL` says so."""

    model_config = SettingsConfigDict(env_prefix="DB_")

    url: str = "postgresql+asyncpg://celeriq@localhost/celeriq"
    """SQLAlchemy's address of a PostgreSQL with pgvector. Defaults to a local one."""

    application_name: str | None = None
    """How its connections are named in `pg_stat_activity`. Defaults to none: a worker's by its name, others celeriq."""

    @property
    def named(self) -> dict[str, str]:
        return {} if self.application_name is None else {"application_name": self.application_name}
