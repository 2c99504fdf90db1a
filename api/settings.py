from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class ApiSettings(BaseSettings):
    """What the API accepts; variables begin with `API_`."""

    model_config = SettingsConfigDict(env_prefix="API_")

    max_upload_bytes: int = Field(default=25 * MIB, ge=1)
    """The largest document. Defaults to 25 MiB."""


settings = ApiSettings()
