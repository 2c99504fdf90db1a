"""What travels: versions, limits, and what follows a call."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from celeriq import PayloadTooLargeError, envelope
from celeriq.envelope import VERSION, Envelope, for_retry, postponed
from celeriq.steps import chained, next_steps


def call(name: str, *args: Any, **fields: Any) -> Envelope:
    return Envelope(v=VERSION, id=name, task=name, args=list(args), kwargs={}, labels={}, **fields)


def test_an_envelope_is_small_and_says_its_version() -> None:
    assert envelope.encode(call("a", 1), 1000) == b'{"v":1,"id":"a","task":"a","args":[1],"kwargs":{},"labels":{}}'


def test_fields_of_a_newer_writer_are_ignored() -> None:
    assert envelope.decode(b'{"v":1,"id":"a","task":"a","args":[],"kwargs":{},"labels":{},"new":1}') == call("a")


def test_a_newer_version_is_told_from_garbage() -> None:
    newer = b'{"v":2,"id":"a","everything":"else"}'
    assert envelope.head(newer) == (2, "a")
    assert envelope.head(b"garbage") == envelope.head(b'{"id":"a"}') == (0, "")
    with pytest.raises(msgspec.DecodeError):
        envelope.decode(newer)
    with pytest.raises(ValueError, match="version 2; this worker understands 1"):
        envelope.decode(b'{"v":2,"id":"a","task":"a","args":[],"kwargs":{},"labels":{}}')


def test_a_message_beyond_the_limit_is_refused_with_its_size_and_the_remedy() -> None:
    with pytest.raises(
        PayloadTooLargeError, match=r"message of task 'a' has 1\d\d bytes, the limit is 100.*max_payload"
    ):
        envelope.encode(call("a", 100 * "x"), 100)


def test_a_retry_counts_and_a_postponement_counts_apart() -> None:
    assert for_retry(for_retry(call("a"))).labels == {"retries": "2"}
    assert postponed(postponed(call("a"))).postponed == 2
    assert postponed(call("a")).labels == {}


def test_the_result_comes_first_among_the_arguments_of_what_follows() -> None:
    """CALL-16, CAN-02, CAN-03."""
    sent = call("a", link=[call("b", 1), call("c", 2, immutable=True)], chain=[call("d", 3), call("e")])
    b, c, d = next_steps(sent, "value")
    assert (b.args, c.args, d.args) == (["value", 1], [2], ["value", 3])
    assert [step.task for step in d.chain] == ["e"]


def test_a_chain_in_a_chain_runs_before_the_rest() -> None:
    first = chained([call("a"), call("b", chain=[call("c")]), call("d")])
    [following] = next_steps(first, None)
    assert [step.task for step in following.chain] == ["c", "d"]
