from __future__ import annotations

from pydantic import BaseModel

from broker import broker
from celeriq.fastapi import task_router

# Every task is announced when it is sent: of what nothing is stored, nobody has heard.
router = task_router(broker, must_exist=True)


class Accepted(BaseModel):
    task_id: str
