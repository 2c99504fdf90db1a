from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, status
from pydantic import BaseModel, ConfigDict, Field

from api.routes.tasks import Accepted
from api.text import LARGEST_ID, Text
from celeriq.fastapi import RequestSession
from db import articles, users
from tasks.articles import run_article_pipeline

router = APIRouter(prefix="/articles", tags=["articles"])


class NewArticle(BaseModel):
    author_id: Annotated[int, Field(ge=1, le=LARGEST_ID)]
    title: Annotated[Text, Field(min_length=1, max_length=300)]
    body: Annotated[Text, Field(max_length=1_000_000)]


class ArticleView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    author_id: int
    title: str
    status: str


@router.post("", status_code=status.HTTP_201_CREATED)
async def create(new: NewArticle, session: RequestSession) -> ArticleView:
    if await users.get(session, new.author_id) is None:
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, f"There is no user {new.author_id}.")
    return ArticleView.model_validate(await articles.create(session, new.author_id, new.title, new.body))


@router.post("/pipeline", status_code=status.HTTP_202_ACCEPTED)
async def run_pipeline(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> Accepted:
    """Publish what is pending, now; the scheduler does so every ten minutes."""
    return Accepted(task_id=(await run_article_pipeline.kiq(limit)).task_id)
