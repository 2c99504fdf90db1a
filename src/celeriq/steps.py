"""What follows what: the steps of chains, the members of groups, and the body of a chord."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from celeriq.envelope import VERSION, Chord, Envelope


def chained(steps: Sequence[Envelope]) -> Envelope:
    """The first of the steps, which bears the others."""
    first, *rest = steps
    return replace(first, chain=[*first.chain, *rest]) if rest else first


def grouped(group_id: str, members: Sequence[Envelope]) -> Envelope:
    """A group as a step: no message, but the place of some."""
    return Envelope(v=VERSION, id=group_id, task="", args=[], kwargs={}, labels={}, members=list(members))


def next_steps(envelope: Envelope, value: Any) -> list[Envelope]:
    """What is sent when the task has succeeded: its links, and the next step of its chain (CALL-16, CAN-03)."""
    steps = [sent for link in envelope.link for sent in messages(fed(link, value, envelope))]
    if envelope.chain:
        following, *rest = envelope.chain
        steps += messages(chained([fed(following, value, envelope), *rest]))
    return steps


def fed(step: Envelope, value: Any, before: Envelope | None = None) -> Envelope:
    """A step behind `before`, with its value; `before` is its parent (CALL-12)."""
    if step.members is None:
        origin = {} if before is None else {"parent": before.id, "root": before.root or before.id}
        return replace(step, args=step.args if step.immutable else [value, *step.args], **origin)
    if not step.members and step.chord is not None:
        # A header of nothing has ended before it begins (CAN-13).
        return fed(step.chord.body, [], before)
    return replace(step, members=[fed(member, value, before) for member in step.members])


def messages(step: Envelope) -> list[Envelope]:
    """What is sent of a step: itself, or the members of a group, each with its place in it."""
    if step.members is None:
        return [step]
    if not step.members and step.chord is not None:
        return messages(fed(step.chord.body, []))
    return [
        message
        for index, member in enumerate(step.members)
        for message in messages(_in_place(member, step.id, index, step.chord))
    ]


def _in_place(member: Envelope, group: str, index: int, chord: Chord | None) -> Envelope:
    """The member whose last step bears the place: it has ended when that has (CAN-17, CAN-18)."""
    if member.chain:
        *steps, last = member.chain
        return replace(member, chain=[*steps, _in_place(last, group, index, chord)])
    if member.members is None:
        return replace(member, group=group, group_index=index, chord=chord)
    if member.chord is not None:
        return replace(member, chord=Chord(member.chord.size, _in_place(member.chord.body, group, index, chord)))
    if chord is None:
        return member
    # The list of its values is one value of the header.
    return replace(member, chord=Chord(len(member.members), _in_place(_list_of(member), group, index, chord)))


def _list_of(group: Envelope) -> Envelope:
    """What stands for the values of a group where a task would: nothing is sent."""
    return replace(group, members=None)


def is_list(step: Envelope) -> bool:
    """Whether it stands for the values of a group, and is no task."""
    return not step.task and step.members is None


def is_empty(step: Envelope) -> bool:
    """Whether it ends with a group of nothing, so that nothing would tell that it has ended."""
    members = last_step(step).members
    return members is not None and (not members or any(is_empty(member) for member in members))


def last_step(step: Envelope) -> Envelope:
    """The one that ends when all of it has ended: the last of its chain, or the body of its chord."""
    while True:
        if step.chain:
            step = step.chain[-1]
        elif step.members is not None and step.chord is not None:
            step = step.chord.body
        else:
            return step


def bodies(sent: Iterable[Envelope]) -> list[Envelope]:
    """What will be sent when all of these have ended, each once."""
    found: dict[int, Chord] = {}
    for message in sent:
        chord = last_step(message).chord
        # Those of one header bear the same.
        while chord is not None and id(chord) not in found:
            found[id(chord)] = chord
            chord = last_step(chord.body).chord
    return [first for chord in found.values() for first in _beginnings(chord.body)]


def _beginnings(step: Envelope) -> list[Envelope]:
    if step.members is None:
        return [] if is_list(step) else [step]
    parts = step.members if step.chord is None else [*step.members, step.chord.body]
    return [first for part in parts for first in _beginnings(part)]


def behind(step: Envelope) -> Iterator[Envelope]:
    """All that will never be sent when it fails; what follows its group is not among it, but told of its failure."""
    for later in step.chain:
        yield from _tasks_of(later)


def _tasks_of(step: Envelope) -> Iterator[Envelope]:
    if is_list(step):
        return
    if step.members is None:
        yield step
    else:
        for member in step.members:
            yield from _tasks_of(member)
        if step.chord is not None:
            yield from _tasks_of(step.chord.body)
    yield from behind(step)
