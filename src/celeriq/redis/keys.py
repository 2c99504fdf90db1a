"""The names of celeriq's keys. All of a broker's share one hash tag, so that one script may touch any of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys below one namespace."""

    namespace: str = "celeriq"

    def queue(self, name: str) -> str:
        return f"{{{self.namespace}}}:queue:{name}"

    def delayed(self, queue: str) -> str:
        return f"{{{self.namespace}}}:delayed:{queue}"

    def dead(self, queue: str) -> str:
        return f"{{{self.namespace}}}:dead:{queue}"

    @property
    def beats(self) -> str:
        return f"{{{self.namespace}}}:beats"

    @property
    def crashes(self) -> str:
        return f"{{{self.namespace}}}:crashes"

    def record(self, task_id: str) -> str:
        return f"{{{self.namespace}}}:record:{task_id}"
