from __future__ import annotations

from typing import Annotated

from taskiq import TaskiqDepends

from broker import broker
from celeriq import CurrentTask, TaskSession, injected
from db import users
from tasks.mailer import Mail, Mailer, MailServiceError, open_mailer
from tasks.settings import MailSettings
from tasks.users import UnknownUserError

settings = MailSettings()


@broker.task(
    name="mail.welcome",
    # What the service allows us, over all workers.
    rate_limit=settings.per_second,
    # It may come back in a second, so ask again soon, then ever later, not all at the same moment.
    autoretry_for=(MailServiceError,),
    retry_backoff=1,
    retry_backoff_max=600,
    max_retries=10,
    # If it does not, let it be: a mail that waits for it uses up no retry.
    circuit_for=(MailServiceError,),
    circuit_failures=5,
    circuit_period=30,
)
async def send_welcome(
    user_id: int,
    session: TaskSession = injected,
    task: CurrentTask = injected,
    mailer: Annotated[Mailer, TaskiqDepends(open_mailer)] = injected,
) -> dict[str, str]:
    """Greet a user. May run twice: the service gets the task's id, and so knows the second mail as the first."""
    user = await users.get(session, user_id)
    if user is None:
        raise UnknownUserError(f"there is no user {user_id}")
    # The connection goes back to the pool while a slow service makes us wait.
    await session.commit()
    mail = Mail(user.email, "Welcome to the library", f"Your {len(user.articles)} articles are waiting for readers.")
    await mailer.send(mail, key=task.id)
    return {"to": user.email}
