"""The Lua scripts, read at import; a server that has forgotten one is sent it again by redis-py."""

from __future__ import annotations

from importlib.resources import files

from redis.asyncio import Redis

SOURCES = {
    file.name.removesuffix(".lua"): file.read_text()
    for file in files("celeriq.redis").iterdir()
    if file.name.endswith(".lua")
}


class Scripts:
    """Every script of this package, bound to one client."""

    def __init__(self, client: Redis) -> None:
        self.send = client.register_script(SOURCES["send"])
        self.fetch = client.register_script(SOURCES["fetch"])
        self.settle = client.register_script(SOURCES["settle"])
        self.store = client.register_script(SOURCES["store"])
        self.release = client.register_script(SOURCES["release"])
        self.leave = client.register_script(SOURCES["leave"])
        self.park = client.register_script(SOURCES["park"])
        self.unpark = client.register_script(SOURCES["unpark"])
        self.replay = client.register_script(SOURCES["replay"])
