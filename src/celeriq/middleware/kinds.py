"""Which calls share a limit: all of a task, or those with the same key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celeriq.errors import TaskDefinitionError

if TYPE_CHECKING:
    from celeriq.definition import Definition
    from celeriq.envelope import Envelope

Key = str | Callable[..., object]

KEY = 'it must be a text with the names of arguments, or a function of them: write "{user_id}"'


def is_key(given: object) -> bool:
    return given is None or isinstance(given, str) or callable(given)


def check_key(task: Definition, option_name: str, key: Key | None, needed: str, given: object) -> None:
    """Raise `TaskDefinitionError` for a key without the option that it is about, or with a name that is no argument."""
    if key is None:
        return
    if given is None:
        raise TaskDefinitionError(f"task {task.name!r}: {option_name} without {needed} does nothing: leave it out")
    if isinstance(key, str):
        try:
            key.format(**dict.fromkeys(task.signature.parameters, ""))
        except (LookupError, ValueError) as error:
            known = ", ".join(task.signature.parameters)
            raise TaskDefinitionError(
                f"task {task.name!r}: {option_name} is {key!r}, and {error} is no argument; known are {known}"
            ) from error


def kind_of(task: Definition, call: Envelope, key: Key | None) -> str:
    """The task and the key of a call, without spaces, for Redis: `mail.send:5`."""
    if key is None:
        return task.name
    if callable(key):
        return f"{task.name}:{_plain(key(*call.args, **call.kwargs))}"
    bound = task.signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return f"{task.name}:{_plain(key.format(**bound.arguments))}"


def _plain(value: Any) -> str:
    return str(value).replace(" ", "_")
