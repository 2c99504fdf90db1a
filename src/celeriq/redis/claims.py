"""Keys that calls have taken, so that no other with the same key is sent."""

from __future__ import annotations

from typing import Any

from celeriq.envelope import Claim, Envelope
from celeriq.redis.keys import Keys
from celeriq.redis.scripts import Scripts
from celeriq.redis.sending import REMEMBER_SENT, Parcel


class Claims:
    """Decides which call has a key; to ask once more is safe, for a call is known by its id, a sending by its name."""

    def __init__(self, keys: Keys, scripts: Scripts) -> None:
        self._keys = keys
        self._scripts = scripts

    async def take(
        self, call: Envelope, claim: Claim, *, replace: bool, parcel: Parcel | None = None, sending: str = ""
    ) -> str:
        """The id of the call that has the key; '' if another has taken the place of this one.

        With a `parcel`, this one is sent in the same step, once for each name of a `sending`. `replace`: it takes the
        place of another one.
        """
        keys = self._keys
        places = [keys.unique(claim.key), keys.revoked, keys.replaced(call.id), keys.wake]
        arguments: list[Any] = [call.id, max(1, round(claim.period * 1000)), int(replace), ""]
        if parcel is not None:
            places += (parcel.key(keys), keys.sender(sending))
            arguments[3:] = [parcel.when, parcel.data, REMEMBER_SENT]
        answer: bytes = await self._scripts.claim(keys=places, args=arguments)
        return answer.decode()
