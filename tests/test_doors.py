"""The public doors, each by the path that the documentation names."""

from pathlib import Path

import pytest
from arq.connections import RedisSettings, create_pool
from starlette.applications import Starlette
from uvicorn.importer import import_from_string

import cplane
from cplane import ControlPlane, CplaneSettings, State, retry_after
from cplane.envelope import deserialize, serialize
from tests.jobs_for_processes import process_add
from tests.programs import environment, output_of
from tests.workers import DEADLINE_S

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", cplane.__all__)
def test_a_public_name_is_in_the_package(name: str) -> None:
    value = getattr(cplane, name)
    home = value.__name__ if name == "retry_after" else value.__module__
    assert home.startswith("cplane.")
    assert getattr(cplane, name) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cplane' has no attribute 'jobb'"):
        _ = cplane.jobb


async def test_all_public_names_load_in_a_new_process(settings: CplaneSettings) -> None:
    program = "from cplane import *; import cplane; print([name for name in cplane.__all__ if name not in globals()])"
    assert await output_of("-c", program, env=environment(settings), cwd=TESTS) == "[]\n"


def test_retry_after_reads_the_header_and_stops_only_jobs_with_a_host() -> None:
    assert retry_after.parse("7") == 7
    retry_after.check(429, "7", "http://site.test/")


def test_an_asgi_server_finds_the_factory_of_the_web_application(
    settings: CplaneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPLANE_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("CPLANE_REDIS_URL", settings.redis_url.get_secret_value())
    assert isinstance(import_from_string("cplane.web:create_app")(), Starlette)


async def test_arq_runs_what_was_submitted_until_nothing_is_left(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await process_add.submit(1, 2)
    await burst(settings)
    assert await handle.state() is State.SUCCEEDED
    assert await handle.result(DEADLINE_S) == 3


async def test_arqs_client_submits_with_the_serializer(settings: CplaneSettings) -> None:
    client = await create_pool(
        RedisSettings.from_dsn(settings.redis_url.get_secret_value()),
        job_serializer=serialize, job_deserializer=deserialize,
    )  # fmt: skip
    try:
        queued = await client.enqueue_job("process_add", 20, 3)
        assert queued is not None
        await burst(settings)
        assert await queued.result(timeout=DEADLINE_S, poll_delay=0.01) == 23
    finally:
        await client.aclose()


async def burst(settings: CplaneSettings) -> None:
    env = environment(settings, CPLANE_IMPORTS="jobs_for_processes", CPLANE_QUEUES="default:4", PYTHONPATH=str(TESTS))
    await output_of("-m", "arq", "--burst", "cplane.worker.Settings", env=env, cwd=TESTS)


async def test_the_package_is_the_command_line(settings: CplaneSettings) -> None:
    text = await output_of("-m", "cplane", "--help", env=environment(settings), cwd=TESTS)
    assert [word for word in ("dev", "submit", "worker", "web", "db") if word not in text.split()] == []
