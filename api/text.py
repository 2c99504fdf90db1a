"""Text from clients that PostgreSQL can store."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator


def storable(text: str) -> str:
    if "\0" in text or (not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise ValueError("text must not contain NUL characters or lone surrogates")
    return text


Text = Annotated[str, AfterValidator(storable)]

LARGEST_ID = 2**31 - 1
Id = Annotated[int, Path(ge=1, le=LARGEST_ID)]
"""An id in a path, as large as its column."""


def stored_filename(given: str | None) -> str:
    """The last part of the client's file name, without what cannot be stored, and at most 255 characters."""
    name = (given or "").replace("\0", "").replace("\\", "/").rpartition("/")[2].strip()
    return name[-255:] or "document.pdf"
