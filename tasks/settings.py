from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class IngestSettings(BaseSettings):
    """How documents are cut and embedded; variables begin with `INGEST_`."""

    model_config = SettingsConfigDict(env_prefix="INGEST_")

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
