"""A script that submits many jobs and waits for the results.

`submit_many` validates, records and schedules in batches as it reads an iterable, so the calls of a large batch are never
all in memory. Results come by push; nothing is polled. Run it in two terminals:

    $ cplane dev examples/plain_script.py
    $ python examples/plain_script.py 500
"""

import asyncio
import sys
import time

from cplane import ControlPlane, Handle, JobFailed, job


@job(timeout=60)
def factors(number: int) -> list[int]:
    """The prime factors of a number: a plain function, so it runs in a thread of the worker."""
    if number < 2:
        raise ValueError(f"{number} has no prime factors")
    found: list[int] = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


async def outcome(handle: Handle[list[int]]) -> list[int] | JobFailed:
    """The result of one job, or why it failed."""
    try:
        return await handle.result(timeout=120)
    except JobFailed as error:
        return error


async def main(count: int) -> None:
    """Factor the numbers below `count`, and print what came out."""
    async with ControlPlane():
        began = time.monotonic()
        handles = await factors.submit_many({"number": number} for number in range(count))
        print(f"{len(handles)} jobs submitted in {time.monotonic() - began:.2f} s", file=sys.stderr)
        outcomes = await asyncio.gather(*map(outcome, handles))
        print(f"all done after {time.monotonic() - began:.2f} s", file=sys.stderr)
    results = [each for each in outcomes if not isinstance(each, JobFailed)]
    failures = [each for each in outcomes if isinstance(each, JobFailed)]
    print(f"{len(results)} succeeded, of which {sum(len(each) == 1 for each in results)} are primes")
    print(f"{len(failures)} failed; the first: {failures[0].error_message}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
