from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query, UploadFile, status
from pydantic import BaseModel, ConfigDict

from api.settings import settings
from api.text import Text, stored_filename
from api.upload_limit import UploadRoute, too_large
from celeriq.fastapi import RequestSession
from db import documents
from tasks.compute import compute
from tasks.documents import ingest_pdf
from tasks.documents import settings as ingest_settings
from tasks.embedding import embed

router = APIRouter(prefix="/documents", tags=["documents"])
uploads = APIRouter(prefix="/documents", tags=["documents"], route_class=UploadRoute)


class Uploaded(BaseModel):
    document_id: UUID
    task_id: str


class DocumentView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    filename: str
    size: int
    pages: int | None
    created_at: datetime
    chunks: int = 0


class HitView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    document_id: UUID
    filename: str
    page: int
    text: str
    distance: float


@uploads.post("", status_code=status.HTTP_202_ACCEPTED)
async def upload(file: UploadFile, session: RequestSession) -> Uploaded:
    """Store a PDF and have it ingested; follow `/tasks/{task_id}/events`."""
    content = await file.read()
    check_upload(content)
    document = await documents.create(session, stored_filename(file.filename), content)
    # The worker must find the document: the message is sent when both are committed.
    sent = await ingest_pdf.apply_async((document.id,), session=session)
    return Uploaded(document_id=document.id, task_id=sent.task_id)


def check_upload(content: bytes) -> None:
    """What can be told at a glance; the rest is for the worker, which reads the whole file."""
    if len(content) > settings.max_upload_bytes:
        raise too_large()
    if not content:
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, "The file is empty.")
    if b"%PDF-" not in content[:1024]:
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, "The file is not a PDF.")


@router.get("/search")
async def search(
    session: RequestSession,
    q: Annotated[Text, Query(max_length=2000, description="what to look for")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 5,
) -> list[HitView]:
    """The passages nearest to the question, nearest first."""
    if not q.strip():
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, "Say what to look for: /documents/search?q=...")
    [embedding] = await compute(embed, ingest_settings.embedding_model, [q])
    if not any(embedding):
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, f"There is no word to look for in {q!r}.")
    return [HitView.model_validate(hit) for hit in await documents.search(session, embedding, limit)]


@router.get("/{document_id}")
async def show(document_id: UUID, session: RequestSession) -> DocumentView:
    document = await documents.get(session, document_id)
    if document is None:
        raise not_found(document_id)
    chunks = await documents.count_chunks(session, document_id)
    return DocumentView.model_validate(document).model_copy(update={"chunks": chunks})


@router.delete("/{document_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete(document_id: UUID, session: RequestSession) -> None:
    if not await documents.delete(session, document_id):
        raise not_found(document_id)


def not_found(document_id: UUID) -> HTTPException:
    return HTTPException(status.HTTP_404_NOT_FOUND, f"There is no document {document_id}.")
