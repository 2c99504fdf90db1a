"""Where a message goes: what the call says, then its task, then the first matching route, then the default (RT-02)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celeriq.errors import UnsupportedOptionError

LOWEST = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A queue and a priority; None leaves it to whoever is asked next."""

    queue: str | None = None
    priority: int | None = None
    """0 is the highest, 9 the lowest (RT-06)."""

    def __post_init__(self) -> None:
        if self.queue is not None and not self.queue:
            raise UnsupportedOptionError('a route needs the name of a queue: write Route(queue="mail")')
        if self.priority is not None:
            check_priority(self.priority)


Router = Callable[[str, Sequence[Any], Mapping[str, Any]], Route | str | None]
"""Called with name, args and kwargs of the task (RT-03)."""

Target = Route | str
RouteMap = Mapping[str | re.Pattern[str], Target]
Routes = RouteMap | Router | Sequence[RouteMap | Router]
"""Names, globs or patterns to queues; or a function; or several of these, of which the first that answers wins."""


def check_priority(priority: object) -> int:
    """`priority`, or `UnsupportedOptionError`."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= LOWEST:
        raise UnsupportedOptionError(f"priority is {priority!r}; it must be a number from 0, the highest, to {LOWEST}")
    return priority


def read_routes(routes: Routes) -> list[Router]:
    """The routers of `routes`; raises `UnsupportedOptionError` for what is none."""
    several = cast("Sequence[RouteMap | Router]", routes if isinstance(routes, list | tuple) else [routes])
    return [_router(one) for one in several]


def find_route(routers: Sequence[Router], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Route:
    for router in routers:
        found = router(name, args, kwargs)
        if found is not None:
            return Route(queue=found) if isinstance(found, str) else found
    return _NO_ROUTE


_NO_ROUTE = Route()


def _router(routes: object) -> Router:
    if isinstance(routes, Mapping):
        return _map_router(cast("RouteMap", routes))
    if callable(routes):
        return cast("Router", routes)
    raise UnsupportedOptionError(
        f"a route is {routes!r}; write routes={{'mail.*': 'mail'}}, a function of name, args and kwargs, or a list"
    )


def _map_router(routes: RouteMap) -> Router:
    """Exact names before patterns, patterns in the order in which they are written (RT-03)."""
    targets = {name: Route(queue=target) if isinstance(target, str) else target for name, target in routes.items()}
    exact = {name: target for name, target in targets.items() if isinstance(name, str)}
    patterns = [
        (re.compile(fnmatch.translate(name)) if isinstance(name, str) else name, target)
        for name, target in targets.items()
        if not isinstance(name, str) or any(sign in name for sign in "*?[")
    ]

    def route(name: str, _args: Sequence[Any], _kwargs: Mapping[str, Any]) -> Route | None:
        if name in exact:
            return exact[name]
        return next((target for pattern, target in patterns if pattern.match(name)), None)

    return route
