"""The peer of a run: nothing but the calls. A loop over a client with ready-made bodies, no ledger, no judging.

`python -m benchmarks.bare_calls CLIENT URL BODIES --calls N --at-once K` prints when the first call began and the last
one ended, in seconds since the epoch. CLIENT is openai (AsyncOpenAI) or aiohttp. Not here: processes beside each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Call = Callable[[dict[str, Any]], Awaitable[str]]


async def _all(call: Call, bodies: list[dict[str, Any]], calls: int, at_once: int) -> tuple[float, float]:
    numbers = iter(range(calls))

    async def lane() -> None:
        for number in numbers:
            text = await call(bodies[number % len(bodies)])
            assert "</answer>" in text

    began = time.time()
    await asyncio.gather(*(lane() for _ in range(at_once)))
    return began, time.time()


async def with_openai(url: str, bodies: list[dict[str, Any]], calls: int, at_once: int) -> tuple[float, float]:
    """As a run's client calls: no retries of its own."""
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def call(body: dict[str, Any]) -> str:
            completion = await client.chat.completions.create(**body)
            return str(completion.choices[0].message.content)

        return await _all(call, bodies, calls, at_once)


async def with_aiohttp(url: str, bodies: list[dict[str, Any]], calls: int, at_once: int) -> tuple[float, float]:
    """The leanest client there is in Python."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as session:

        async def call(body: dict[str, Any]) -> str:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                said = await response.json()
                return str(said["choices"][0]["message"]["content"])

        return await _all(call, bodies, calls, at_once)


def main() -> None:
    """One process of calls."""
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=("openai", "aiohttp"))
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    asked = parser.parse_args()
    bodies = [json.loads(line) for line in asked.bodies.read_text().splitlines()]
    work = {"openai": with_openai, "aiohttp": with_aiohttp}[asked.client]
    print(json.dumps(asyncio.run(work(asked.url, bodies, asked.calls, asked.at_once))))


if __name__ == "__main__":
    main()
