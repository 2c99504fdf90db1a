"""The names of celeriq's keys. All of a broker's share one hash tag, so that one script may touch any of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

GROUP = "celeriq"
"""The one consumer group of every stream."""

PRIORITY_STEPS = (0, 3, 6, 9)
"""A queue has a stream for each step, 0 for the highest; a priority goes to the largest step below it (RT-06)."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys below one namespace."""

    namespace: str = "celeriq"

    def queue(self, name: str, step: int = 0) -> str:
        return f"{{{self.namespace}}}:queue:{name}:{step}"

    def steps(self, name: str) -> list[str]:
        """The streams of a queue, the highest priority first."""
        return [self.queue(name, step) for step in PRIORITY_STEPS]

    @staticmethod
    @lru_cache
    def queue_of(stream: str) -> tuple[str, int]:
        """The queue and the priority step of a stream."""
        queue, _, step = stream.partition(":queue:")[2].rpartition(":")
        return queue, int(step)

    def delayed(self, queue: str) -> str:
        return f"{{{self.namespace}}}:delayed:{queue}"

    def dead(self, queue: str) -> str:
        return f"{{{self.namespace}}}:dead:{queue}"

    @property
    def queues(self) -> str:
        return f"{{{self.namespace}}}:queues"

    @property
    def paused(self) -> str:
        return f"{{{self.namespace}}}:paused"

    @property
    def parked(self) -> str:
        return f"{{{self.namespace}}}:parked"

    def parked_as(self, name: str) -> str:
        return f"{{{self.namespace}}}:parked:{name}"

    @property
    def beats(self) -> str:
        return f"{{{self.namespace}}}:beats"

    @property
    def pools(self) -> str:
        return f"{{{self.namespace}}}:pools"

    @property
    def leaving(self) -> str:
        return f"{{{self.namespace}}}:leaving"

    @property
    def crashes(self) -> str:
        return f"{{{self.namespace}}}:crashes"

    @property
    def revoked(self) -> str:
        return f"{{{self.namespace}}}:revoked"

    @property
    def revocations(self) -> str:
        return f"{{{self.namespace}}}:revocations"

    @property
    def control(self) -> str:
        """A channel, not a key."""
        return f"{{{self.namespace}}}:control"

    @property
    def slots(self) -> str:
        return f"{{{self.namespace}}}:slots"

    def running(self, kind: str) -> str:
        return f"{{{self.namespace}}}:running:{kind}"

    def line(self, kind: str) -> str:
        return f"{{{self.namespace}}}:line:{kind}"

    def rate(self, kind: str) -> str:
        return f"{{{self.namespace}}}:rate:{kind}"

    def unique(self, kind: str) -> str:
        return f"{{{self.namespace}}}:unique:{kind}"

    def replaced(self, task_id: str) -> str:
        return f"{{{self.namespace}}}:replaced:{task_id}"

    def circuit(self, kind: str) -> str:
        return f"{{{self.namespace}}}:circuit:{kind}"

    @property
    def wake(self) -> str:
        """A channel, not a key."""
        return f"{{{self.namespace}}}:wake"

    @property
    def history(self) -> str:
        return f"{{{self.namespace}}}:history"

    @property
    def recorded(self) -> str:
        return f"{{{self.namespace}}}:recorded"

    def chord(self, group_id: str) -> str:
        return f"{{{self.namespace}}}:chord:{group_id}"

    def group(self, group_id: str) -> str:
        return f"{{{self.namespace}}}:group:{group_id}"

    @property
    def sent(self) -> str:
        return f"{{{self.namespace}}}:sent"

    def sender(self, name: str) -> str:
        return f"{{{self.namespace}}}:sender:{name}"

    def record(self, task_id: str) -> str:
        return f"{{{self.namespace}}}:record:{task_id}"


_STEP_OF = [max(step for step in PRIORITY_STEPS if step <= priority) for priority in range(10)]


def step_of(priority: int) -> int:
    """The priority step, 0 to 9, that `priority` belongs to (RT-06)."""
    return _STEP_OF[priority]
