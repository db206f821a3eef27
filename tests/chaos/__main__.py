"""The long run: `python -m tests.chaos --jobs 10000 --seed 7 --minutes 20`.

Exits with 0 if no rule was broken, else with 1.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.arena import arena
from tests.chaos.nemesis import Nemesis, Progress
from tests.chaos.nursery import Nursery
from tests.chaos.scenario import scenario


def main() -> int:
    options = read_options()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-run-"))
    print(f"seed {seed}, {options.jobs} jobs in {options.minutes:g} minutes, journal and logs in {folder}", flush=True)
    with Nursery() as nursery:
        return asyncio.run(run_and_judge(nursery, folder, seed, options))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--lease", type=float, default=3.0, help="lease of the workers in seconds")
    parser.add_argument(
        "--final", type=float, default=300.0, help="seconds within which everything must be final after the last fault"
    )
    return parser.parse_args()


async def run_and_judge(nursery: Nursery, folder: Path, seed: int, options: argparse.Namespace) -> int:
    async with arena() as made, scenario(made, nursery, folder, seed=seed, lease_s=options.lease) as run:
        nemesis = Nemesis(run, jobs=options.jobs, minutes=options.minutes, report=print_progress)
        violations, history = await nemesis.work(options.final)
        if violations:
            print(run.report(violations[:50]))
        print(run.verdict(history, violations))
        return 1 if violations else 0


def print_progress(progress: Progress) -> None:
    print(f"{progress.at_s:7.1f} s  {progress.submitted:6} submitted  {progress.fault}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
