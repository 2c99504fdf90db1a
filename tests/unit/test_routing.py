"""Which queue and priority a message gets (RT-02, RT-03)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from celeriq import Route, UnsupportedOptionError
from celeriq.redis.keys import step_of
from celeriq.routing import check_priority, find_route, read_routes


def route(routes: Any, name: str, *args: Any) -> Route:
    return find_route(read_routes(routes), name, args, {})


def test_without_a_route_the_next_in_line_decides() -> None:
    assert route((), "mail.send") == route({"feeds.*": "feeds"}, "mail.send") == Route()


def test_an_exact_name_comes_before_a_pattern_and_patterns_in_their_order() -> None:
    routes = {"feeds.*": "feeds", "feeds.import": Route(queue="imports", priority=3), re.compile("feeds|mail"): "both"}
    assert route(routes, "feeds.import") == Route(queue="imports", priority=3)
    assert route(routes, "feeds.export").queue == "feeds"
    assert route(routes, "mail.send").queue == "both"


def test_of_several_routers_the_first_that_answers_wins() -> None:
    def by_argument(_name: str, args: Any, _kwargs: Any) -> str | None:
        return "big" if args and args[0] > 100 else None

    assert route([by_argument, {"*": "small"}], "task", 101).queue == "big"
    assert route([by_argument, {"*": "small"}], "task", 1).queue == "small"


@pytest.mark.parametrize("priority", [-1, 10, "3", True, 1.5])
def test_a_priority_is_a_number_from_0_to_9(priority: Any) -> None:
    with pytest.raises(UnsupportedOptionError, match="from 0, the highest, to 9"):
        check_priority(priority)
    with pytest.raises(UnsupportedOptionError, match="from 0, the highest, to 9"):
        Route(priority=priority)


@pytest.mark.parametrize("routes", [3, [3], "mail"])
def test_what_is_no_route_is_refused_with_an_example(routes: Any) -> None:
    with pytest.raises(UnsupportedOptionError, match="write routes="):
        read_routes(routes)


def test_a_priority_belongs_to_the_largest_step_below_it() -> None:
    """RT-06."""
    assert [step_of(priority) for priority in range(10)] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
