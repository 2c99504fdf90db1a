"""Text out of PDFs. Plain functions of plain data: they run in processes of their own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BytesIO

from pypdf import PdfReader
from pypdf.errors import DependencyError

ENCRYPTED = "the PDF is encrypted: upload it without a password"


class UnreadableDocumentError(ValueError):
    """A document that no second try would make readable; the message is for who uploaded it."""


def count_pages(content: bytes) -> int:
    """Raises `UnreadableDocumentError` for what is no PDF, damaged, encrypted or without pages."""
    with _refusing("not a readable PDF"):
        reader = PdfReader(BytesIO(content))
        if reader.is_encrypted:
            raise UnreadableDocumentError(ENCRYPTED)
        if not (pages := len(reader.pages)):
            raise UnreadableDocumentError("the PDF has no pages")
        return pages


def extract_pages(content: bytes, first: int, last: int) -> list[str]:
    """The text of the pages from `first` up to, not including, `last`; pages count from 0."""
    with _refusing("the PDF is damaged"):
        return [page.extract_text() for page in PdfReader(BytesIO(content)).pages[first:last]]


def chunks_of(text: str, longest: int) -> Iterator[str]:
    """The text in pieces of at most `longest` characters, cut between words wherever there are words.

    PDFs yield characters that PostgreSQL cannot store, NUL and lone halves of surrogate pairs; they are left out.
    """
    piece = ""
    for word in text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "ignore").split():
        if piece and len(piece) + 1 + len(word) > longest:
            yield piece
            piece = ""
        piece = f"{piece} {word}" if piece else word
        while len(piece) > longest:
            yield piece[:longest]
            piece = piece[longest:]
    if piece:
        yield piece


@contextmanager
def _refusing(reason: str) -> Generator[None]:
    """Whatever pypdf raises becomes `UnreadableDocumentError`: damaged files make it raise nearly anything."""
    try:
        yield
    except (UnreadableDocumentError, MemoryError):
        raise
    except DependencyError as error:
        # Only decryption needs a further package here; pypdf looks for it as soon as it opens the file.
        raise UnreadableDocumentError(ENCRYPTED) from error
    except Exception as error:
        raise UnreadableDocumentError(f"{reason}: {error}") from error
