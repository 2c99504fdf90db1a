"""FastAPI beside the workers: one engine, a session that commits before the answer, and routes that follow tasks."""

from __future__ import annotations

from celeriq.fastapi.lifespan import lifespan
from celeriq.fastapi.schedule_routes import schedule_router
from celeriq.fastapi.session import RequestSession, request_session
from celeriq.fastapi.task_routes import task_router
from celeriq.fastapi.task_view import TaskError, TaskView

__all__ = ["RequestSession", "TaskError", "TaskView", "lifespan", "request_session", "schedule_router", "task_router"]
