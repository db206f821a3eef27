"""Two jobs, one async and one plain, with typed arguments and typed results.

Run it in two terminals. The first has Postgres, Redis and a worker; the second submits and waits:

    $ cplane dev examples/hello.py
    $ python examples/hello.py
"""

import asyncio

from pydantic import BaseModel

from cplane import Context, ControlPlane, job


class Greeting(BaseModel):
    """What `greet` returns: a pydantic model is stored as JSON, and arrives as a model."""

    text: str
    attempt: int


@job(timeout=10, retries=3)
async def greet(ctx: Context, name: str, *, polite: bool = False) -> Greeting:
    """A job gets what it asks for by type (`ctx: Context`) first; the other parameters are its arguments."""
    ctx.log.info("greeting", name=name)
    return Greeting(text=f"Good morning, {name}" if polite else f"Hello, {name}", attempt=ctx.attempt)


@job
def add(x: int, y: int) -> int:
    """A plain function runs in a thread of the worker."""
    return x + y


async def main() -> None:
    """Submit both, then wait for their results."""
    async with ControlPlane():
        greeting = await greet.submit("Ada", polite=True)
        total = await add.submit(1, 2)
        print((await greeting.result(timeout=30)).text)
        print(await total.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
