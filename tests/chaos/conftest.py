"""Fixtures: one nursery of workers per test process, one arena per test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.arena import Arena, arena
from tests.chaos.nursery import Nursery
from tests.chaos.scenario import Scenario, scenario


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest_asyncio.fixture(name="arena")
async def _arena(database_url: str) -> AsyncIterator[Arena]:
    """A database and a Redis for this test only."""
    async with arena(database_url) as made:
        yield made


@pytest_asyncio.fixture
async def own_arena() -> AsyncIterator[Arena]:
    """An arena whose Postgres can be broken too."""
    async with arena() as made:
        yield made


@pytest_asyncio.fixture
async def run(arena: Arena, nursery: Nursery, tmp_path: Path) -> AsyncIterator[Scenario]:
    async with scenario(arena, nursery, tmp_path) as run:
        yield run
