"""What is found because of the module's name."""

from __future__ import annotations

from tests.conformance.scenario import DISCOVERING


async def greet(name: str) -> str:
    return f"hello, {name}"


DISCOVERING[-1].define(greet)
