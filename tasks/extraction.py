"""Text out of PDFs. Plain functions of plain data: they run in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from pypdf import PdfReader
from pypdf.errors import PyPdfError


class UnreadableDocumentError(ValueError):
    """A document that no second try would make readable; the message is for who uploaded it."""


def count_pages(content: bytes) -> int:
    """Raises `UnreadableDocumentError` for what is no PDF, damaged, encrypted or without pages."""
    reader = _open(content)
    if reader.is_encrypted:
        raise UnreadableDocumentError("the PDF is encrypted: upload it without a password")
    if not (pages := len(reader.pages)):
        raise UnreadableDocumentError("the PDF has no pages")
    return pages


def extract_pages(content: bytes, first: int, last: int) -> list[str]:
    """The text of the pages from `first` up to, not including, `last`; pages count from 0."""
    try:
        return [page.extract_text() for page in _open(content).pages[first:last]]
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableDocumentError(f"the PDF is damaged: {error}") from error


def chunks_of(text: str, longest: int) -> Iterator[str]:
    """The text in pieces of at most `longest` characters, cut between words wherever there are words."""
    piece = ""
    for word in text.replace("\0", "").split():
        if piece and len(piece) + 1 + len(word) > longest:
            yield piece
            piece = ""
        piece = f"{piece} {word}" if piece else word
        while len(piece) > longest:
            yield piece[:longest]
            piece = piece[longest:]
    if piece:
        yield piece


def _open(content: bytes) -> PdfReader:
    try:
        return PdfReader(BytesIO(content))
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableDocumentError(f"not a readable PDF: {error}") from error
