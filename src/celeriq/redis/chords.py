"""How the settlement script is told of a part of a chord."""

from __future__ import annotations

from typing import Any, Self

import msgspec

from celeriq import record
from celeriq.parts import PLACE, Part
from celeriq.redis.keys import Keys
from celeriq.redis.sending import Parcel

_PLACE = record.encode(PLACE)


class Counted(msgspec.Struct, frozen=True):
    """A part that has ended, and the messages of the body."""

    part: Part
    parcels: list[Parcel]
    outer: Self | None

    @classmethod
    def of(cls, part: Part, default_queue: str) -> Self:
        parcels = [Parcel(one.queue or default_queue, text, one.priority, one.delay) for one, text in part.body]
        return cls(part, parcels, None if part.outer is None else cls.of(part.outer, default_queue))

    def keys(self, keys: Keys) -> list[str]:
        outer = [] if self.outer is None else self.outer.keys(keys)
        return [keys.chord(self.part.group), *(parcel.key(keys) for parcel in self.parcels), *outer]

    def arguments(self) -> list[Any]:
        part = self.part
        numbers = (part.index, part.size, len(self.parcels), self.outer is not None)
        arguments: list[Any] = [b"%d %d %d %d" % numbers, part.told]
        for parcel in self.parcels:
            opening, _, text = parcel.data.partition(b"{")
            before, _, after = text.partition(_PLACE)
            arguments += (parcel.when, opening + b"{", before, after)
        return arguments if self.outer is None else [*arguments, *self.outer.arguments()]
