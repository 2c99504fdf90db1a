from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class IngestSettings(BaseSettings):
    """How documents are cut and embedded; variables begin with `INGEST_`."""

    model_config = SettingsConfigDict(env_prefix="INGEST_")

    at_once: int = Field(default=8, ge=1)
    """Documents ingested at a time, in all workers together; the others hold no slot. Defaults to 8."""

    processes: int = Field(default=1, ge=1)
    """Processes for CPU-bound work beside each worker and API process. Defaults to 1."""

    chunk_characters: int = Field(default=1000, ge=100)
    """The longest piece of text that is embedded as one. Defaults to 1000 characters."""

    pages_per_step: int = Field(default=25, ge=1)
    """Pages read between two reports of progress. Defaults to 25."""

    chunks_per_step: int = Field(default=64, ge=1)
    """Chunks embedded between two reports of progress. Defaults to 64."""

    step_seconds: float = Field(default=120, gt=0)
    """Seconds that one step may compute; a PDF that takes longer counts as unreadable. Defaults to 120."""

    embedding_model: str | None = None
    """A sentence-transformers model with 384 dimensions. Defaults to none: hashed words, which need no model."""


class MailSettings(BaseSettings):
    """Who delivers mail; variables begin with `MAIL_`."""

    model_config = SettingsConfigDict(env_prefix="MAIL_")

    url: str | None = None
    """Where mails are posted as JSON. Defaults to none: they are written to the log."""

    per_second: float = Field(default=10, ge=0)
    """Mails that may be posted in a second, by all workers together; 0 is no limit. Defaults to 10."""

    timeout: float = Field(default=10, gt=0)
    """Seconds to wait for the service. Defaults to 10."""


class MaintenanceSettings(BaseSettings):
    """What is done by itself, and when; variables begin with `MAINTENANCE_`."""

    model_config = SettingsConfigDict(env_prefix="MAINTENANCE_")

    unread_days: float = Field(default=7, gt=0)
    """Days after which a document that was never ingested is deleted. Defaults to 7."""

    report_seconds: float = Field(default=3600, ge=1)
    """Seconds between two reports in the log. Defaults to an hour."""
