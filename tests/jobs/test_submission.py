"""Options of a submission, and batches."""

import math
import typing
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cplane import ControlPlane, job
from cplane.errors import DatabaseUnavailable, InvalidArguments, NoControlPlane
from cplane.jobs.handle import Handle

NOW = datetime(2026, 3, 29, 1, 30, 15, 123456, tzinfo=UTC)


async def noop() -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 1, "at": NOW}, "delay and at exclude each other"),
        ({"at": NOW.replace(tzinfo=None)}, "at must be an aware datetime"),
        ({"key": ""}, "an idempotency key has 1 to 255 characters"),
        ({"key": "k" * 256}, "an idempotency key has 1 to 255 characters"),
        ({"queue": "two words"}, "'two words' is not a queue name"),
        ({"queue": ""}, "'' is not a queue name"),
        ({"delay": -0.1}, "delay must be 0 or more seconds and at most ten years, not -0.1"),
        ({"delay": timedelta(seconds=-1)}, "delay must be 0 or more seconds"),
        ({"delay": math.nan}, "delay must be 0 or more seconds"),
        ({"delay": timedelta(days=4000)}, "at most ten years"),
        ({"timeout": 300.1}, "the timeout of 'noop' must be more than 0 and at most 300 seconds, not 300.1"),
        ({"timeout": timedelta(hours=1)}, "at most 300 seconds, not datetime.timedelta(seconds=3600)"),
        ({"timeout": 0}, "more than 0 and at most 300 seconds, not 0"),
        ({"timeout": -1}, "more than 0 and at most 300 seconds, not -1"),
        ({"timeout": math.nan}, "more than 0 and at most 300 seconds, not nan"),
        ({"timeout": math.inf}, "more than 0 and at most 300 seconds, not inf"),
        ({"timeout": True}, "more than 0 and at most 300 seconds, not True"),
        ({"timeout": "5"}, "more than 0 and at most 300 seconds, not '5'"),
        ({"timeout": 10**400}, "more than 0 and at most 300 seconds"),
    ],
)
def test_impossible_options_of_a_submission_are_refused_before_anything_is_sent(
    options: dict[str, Any], message: str
) -> None:
    made = job(noop)
    with pytest.raises(InvalidArguments) as caught:
        made.using(**options)
    assert message in caught.value.message


def test_a_submission_has_the_options_that_were_given() -> None:
    made = job(queue="own")(noop)
    plain = made.using().submission(b"{}")
    assert (plain.queue, plain.delay_s, plain.run_at, plain.key) == ("own", None, None, None)
    custom = made.using(delay=timedelta(minutes=2), key="k" * 255, queue="other").submission(b"{}")
    assert (custom.job, custom.args_json, custom.queue, custom.delay_s, custom.key) == (
        made,
        b"{}",
        "other",
        120.0,
        "k" * 255,
    )
    assert (plain.timeout_s, made.using(timeout=timedelta(minutes=5)).submission(b"{}").timeout_s) == (None, 300.0)
    assert made.using(at=NOW, delay=None).submission(b"{}").run_at == NOW


async def test_the_error_for_a_submission_without_a_control_plane_says_what_to_do() -> None:
    @job
    async def without_plane(x: int) -> None: ...

    for submitted in (
        without_plane.submit(1),
        without_plane.delay(1),
        without_plane.using(delay=1).submit(x=1),
        without_plane.using(key="k").delay(x=1),
        without_plane.submit_many([{"x": 1}]),
    ):
        with pytest.raises(NoControlPlane, match="submit inside `async with ControlPlane") as caught:
            await submitted
        assert caught.value.hint


async def test_one_idempotency_key_cannot_be_used_for_a_batch() -> None:
    made = job(noop)
    with pytest.raises(InvalidArguments, match="one idempotency key cannot be used for many jobs"):
        await made.using(key="k").submit_many([{}])


@pytest.mark.parametrize("calls", [5, None, [3], [{}, 3], "ab"])
async def test_a_batch_accepts_only_mappings(plane: ControlPlane, calls: typing.Any) -> None:
    with pytest.raises(InvalidArguments, match="submit_many takes a mapping of arguments for each job") as caught:
        await job(noop).submit_many(calls)
    assert caught.value.hint
    assert await plane.records() == []


async def takes_a_number(x: int) -> int:
    return x


async def recorded_as(plane: ControlPlane, submitted: Mapping[int, Handle[int]]) -> dict[int, object]:
    found = await plane.store.get_many([handle.id for handle in submitted.values()])
    records = {record.id: record.args for record in found}
    return {index: records[handle.id] for index, handle in submitted.items()}


async def test_the_error_of_a_batch_names_the_invalid_call_and_the_submitted_jobs(plane: ControlPlane) -> None:
    calls: list[dict[str, object]] = [{"x": number} for number in range(2500)]
    calls[2300] = {"x": "many"}
    with pytest.raises(InvalidArguments, match=r"^calls\[2300\]: .*x: Input should be a valid integer") as caught:
        await job(takes_a_number).submit_many(calls)
    assert [problem.path for problem in caught.value.problems] == ["/2300/x"]
    assert await recorded_as(plane, caught.value.submitted) == {index: {"x": index} for index in range(2000)}
    assert caught.value.__notes__ == [
        "2,000 jobs of the batch were submitted and stay submitted: error.submitted has their handles"
    ]


async def test_the_error_of_a_batch_names_the_call_that_is_too_large(plane: ControlPlane) -> None:
    @job
    async def takes_a_text(text: str) -> None: ...

    large = "x" * plane.settings.max_body_bytes
    with pytest.raises(
        InvalidArguments, match=r"^calls\[1\]: the arguments of 'takes_a_text' are .* bytes, the limit is"
    ):
        await takes_a_text.submit_many([{"text": "small"}, {"text": large}])
    assert await plane.records() == []


async def test_the_error_of_a_batch_without_submitted_jobs_has_no_handles(plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments, match=r"^calls\[0\]: ") as caught:
        await job(takes_a_number).submit_many([{}])
    assert caught.value.submitted == {}
    assert not hasattr(caught.value, "__notes__")


async def test_the_error_of_an_outage_has_the_handles_of_the_chunks_that_were_submitted(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, chunks = plane.store.submit, 0

    async def breaks(records: typing.Any, **more: typing.Any) -> typing.Any:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise DatabaseUnavailable("gone")
        return await submit(records, **more)

    monkeypatch.setattr(plane.store, "submit", breaks)
    with pytest.raises(DatabaseUnavailable) as caught:
        await job(takes_a_number).submit_many({"x": number} for number in range(6000))
    indexes = set(caught.value.submitted)
    assert {*range(1000)} <= indexes
    assert not indexes & {*range(1000, 2000)}
    assert await recorded_as(plane, caught.value.submitted) == {index: {"x": index} for index in indexes}
    assert len(await plane.records(limit=10_000)) == len(indexes)


async def test_an_error_of_the_iterable_itself_notes_how_many_jobs_were_submitted(plane: ControlPlane) -> None:
    async def read() -> AsyncIterator[dict[str, object]]:
        for number in range(1500):
            yield {"x": number}
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="the file ends here") as caught:
        await job(takes_a_number).submit_many(read())
    assert caught.value.__notes__ == ["1,000 jobs of the batch were submitted and stay submitted"]
    assert len(await plane.records(limit=10_000)) == 1000
