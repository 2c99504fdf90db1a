from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from celeriq import PoolAdvice


class BrokerSettings(BaseSettings):
    """Where the queues are and how workers behave; variables begin with `BROKER_`."""

    model_config = SettingsConfigDict(env_prefix="BROKER_")

    url: str = "redis://localhost:6379/0"
    """Redis or Valkey. Defaults to a local one."""

    namespace: str = "celeriq"
    """Keeps applications on one Redis apart. Defaults to celeriq."""

    lease: float = 30.0
    """Seconds after which a silent worker's messages run elsewhere. Defaults to 30."""

    queues: str | None = None
    """What a worker reads, with commas between. Defaults to none: the queues of all tasks."""

    pool_size: int = 10
    """Connections that one process keeps to the database. Defaults to 10, and a fifth more under pressure."""

    log_format: str = "console"
    """`console` for people, `json` for machines. Defaults to console."""

    @property
    def read_queues(self) -> list[str] | None:
        return None if self.queues is None else [name.strip() for name in self.queues.split(",")]

    @property
    def pool(self) -> PoolAdvice:
        return PoolAdvice(size=self.pool_size)
