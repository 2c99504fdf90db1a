from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy.exc import IntegrityError

from api.routes.tasks import Accepted
from api.text import Id, Text
from celeriq.fastapi import RequestSession
from db import users
from tasks.mail import send_welcome
from tasks.users import activate_user

router = APIRouter(prefix="/users", tags=["users"])


class NewUser(BaseModel):
    email: Annotated[Text, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$", max_length=320)]


class UserView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    is_active: bool
    activated_at: datetime | None


@router.post("", status_code=status.HTTP_201_CREATED)
async def create(new: NewUser, session: RequestSession) -> UserView:
    try:
        return UserView.model_validate(await users.create(session, new.email))
    except IntegrityError as error:
        raise HTTPException(status.HTTP_409_CONFLICT, f"There is a user {new.email} already.") from error


@router.get("/{user_id}")
async def show(user_id: Id, session: RequestSession) -> UserView:
    user = await users.get(session, user_id)
    if user is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"There is no user {user_id}.")
    return UserView.model_validate(user)


@router.post("/{user_id}/activation", status_code=status.HTTP_202_ACCEPTED)
async def activate(user_id: Id, session: RequestSession) -> Accepted:
    """Activate a user, who is greeted by mail when that has succeeded."""
    user = await users.get(session, user_id)
    if user is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"There is no user {user_id}.")
    greeting = [] if user.is_active else [send_welcome.si(user_id)]
    return Accepted(task_id=(await activate_user.apply_async((user_id,), link=greeting)).task_id)
