"""The jobs of a scenario: submissions of the chaos jobs, drawn from a seeded generator."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from pydantic import JsonValue

WEIGHTS = {"chaos_ok": 4, "chaos_works": 2, "chaos_flaky": 1, "chaos_fails": 1, "chaos_writes": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One planned submission."""

    job: str
    tag: str
    args: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    delay_s: float | None = None
    key: str | None = None


class Workload:
    """Creates calls. Tags are unique within a scenario."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = random.Random(f"workload {seed}")
        self._folder = folder
        self._numbers = count()

    def call(self, job: str, *, delay_s: float | None = None, keyed: bool = False, **args: JsonValue) -> Call:
        tag = f"{job}-{next(self._numbers)}"
        if job == "chaos_flaky":
            args |= {"times": 1, "folder": str(self._folder)}
        if job in {"chaos_blocks", "chaos_overstays"}:
            args |= {"folder": str(self._folder)}
        return Call(job=job, tag=tag, args=args, delay_s=delay_s, key=f"key-{tag}" if keyed else None)

    def each(self) -> list[Call]:
        """Return one call of each kind that ends by itself."""
        return [
            self.call("chaos_ok"),
            self.call("chaos_works", seconds=1.5),
            self.call("chaos_flaky"),
            self.call("chaos_fails"),
            self.call("chaos_writes", keyed=True),
            self.call("chaos_ok", delay_s=1.0),
        ]

    def unrecorded(self, number: int, max_s: float = 1.5) -> Iterator[Call]:
        """Yield transient jobs, for `submit_transient`."""
        for _ in range(number):
            yield self.call("chaos_unrecorded", seconds=round(self._random.uniform(0.1, max_s), 2))

    def mixed(self, number: int, max_s: float = 1.5) -> Iterator[Call]:
        """Yield calls of every kind, quick ones more often."""
        for _ in range(number):
            (job,) = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
            args: dict[str, JsonValue] = {}
            if job == "chaos_works":
                args["seconds"] = round(self._random.uniform(0.1, max_s), 2)
            delay_s = self._random.uniform(0.2, 2.0) if self._random.random() < 0.15 else None
            yield self.call(job, delay_s=delay_s, keyed=self._random.random() < 0.3, **args)
