from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from broker import broker
from celeriq import BoundTask, CurrentTask, TaskSession, TimeLimitExceeded, injected
from db import documents
from db.documents import Passage
from tasks.compute import compute
from tasks.embedding import embed
from tasks.extraction import UnreadableDocumentError, chunks_of, count_pages, extract_pages
from tasks.settings import IngestSettings

settings = IngestSettings()


class DocumentGoneError(LookupError):
    """The document was deleted before its chunks could be stored."""


@broker.task(name="documents.ingest_pdf", concurrency_limit=settings.at_once)
async def ingest_pdf(
    document_id: UUID, session: TaskSession = injected, task: CurrentTask = injected
) -> dict[str, str | int]:
    """Make a stored PDF searchable. May run twice: the second run replaces what the first stored."""
    content = await documents.content(session, document_id)
    # The connection goes back to the pool while we compute; the next statement takes one again.
    await session.commit()
    if content is None:
        raise DocumentGoneError(f"document {document_id} does not exist, or was deleted before it was ingested")
    try:
        pages = await extract(content, task)
    except UnreadableDocumentError:
        # What nobody can ever read is not kept. Committed here, because failing rolls back.
        await documents.delete(session, document_id)
        await session.commit()
        raise
    passages = await embed_pages(pages, task)
    if not await documents.store_passages(session, document_id, len(pages), passages):
        raise DocumentGoneError(f"document {document_id} was deleted while it was being ingested")
    return {"status": "success", "chunks": len(passages)}


async def extract(content: bytes, task: BoundTask) -> list[str]:
    """The text of every page; raises `UnreadableDocumentError`."""
    pages: list[str] = []
    try:
        total = await compute(count_pages, content)
        for first in range(0, total, settings.pages_per_step):
            pages += await compute(extract_pages, content, first, first + settings.pages_per_step)
            await task.update_state("PROGRESS", {"step": "extract", "current": len(pages), "total": total})
    except TimeLimitExceeded as error:
        raise UnreadableDocumentError("the PDF takes too long to read") from error
    if not any(page.strip() for page in pages):
        raise UnreadableDocumentError("the PDF has no text: it may be a scan, which needs OCR first")
    return pages


async def embed_pages(pages: Sequence[str], task: BoundTask) -> list[Passage]:
    chunks = [
        (number, chunk)
        for number, text in enumerate(pages, start=1)
        for chunk in chunks_of(text, settings.chunk_characters)
    ]
    passages: list[Passage] = []
    for first in range(0, len(chunks), settings.chunks_per_step):
        step = chunks[first : first + settings.chunks_per_step]
        vectors = await compute(embed, settings.embedding_model, [text for _, text in step])
        passages += [Passage(page, text, vector) for (page, text), vector in zip(step, vectors, strict=True)]
        await task.update_state("PROGRESS", {"step": "embed", "current": len(passages), "total": len(chunks)})
    return passages
