"""Submitting, listing, showing, cancelling and retrying over HTTP."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

if TYPE_CHECKING:
    from tests.web.conftest import Api, Hand

JOBS = "/api/v1/jobs"
UNKNOWN = "01890000-0000-7000-8000-000000000000"


async def test_a_submission_answers_202_with_its_location_and_its_record(api: "Api") -> None:
    answer = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1, "y": 2}})

    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/json"
    record = answer.json()
    assert answer.headers["location"] == record["url"] == f"{JOBS}/{record['id']}"
    assert "idempotency-replayed" not in answer.headers
    expected: dict[str, Any] = {
        "job": "web_add",
        "queue": "default",
        "priority": "normal",
        "recorded": True,
        "state": "queued",
        "args": {"x": 1, "y": 2},
        "result": None,
        "error": None,
        "progress": None,
        "attempt": 0,
        "failures": 0,
        "cancel_requested": False,
        "key": None,
        "worker": None,
        "started_at": None,
        "finished_at": None,
        "attempts": [],
        "artifacts": [],
    }
    assert {name: record[name] for name in expected} == expected
    assert set(record) == {*expected, "id", "url", "created_at", "run_at"}
    assert datetime.fromisoformat(record["created_at"]).utcoffset() == timedelta(0)
    shown = (await api.client.get(record["url"])).json()
    assert (shown, list(shown)) == (record, list(record))


async def test_what_is_answered_at_once_is_what_is_recorded(api: "Api", subtests: pytest.Subtests) -> None:
    bodies: list[dict[str, Any]] = [
        {"job": "web:any.thing", "args": {"value": {"é": [1, 1.5, 1e3, True, None, "\u2028", {}]}}},
        {"job": "web_visit", "args": {"url": "http://localhost", "size": {"width": 1}, "tags": ["a", "b"]}},
        {"job": "web_add", "args": {"x": 1}, "queue": "slow", "priority": "high", "delay": 60},
        {"job": "web_add", "args": {"x": 1}, "at": "2090-01-01T12:00:00.5+02:00", "priority": "low"},
    ]
    for body in bodies:
        with subtests.test(body=body):
            record = await api.submit(**{"name": body.pop("job"), **body})
            assert (await api.client.get(record["url"])).json() == record


async def test_priority_is_an_option_of_a_submission(api: "Api") -> None:
    urgent, plain = await api.submit(priority="high"), await api.submit()
    assert (urgent["priority"], plain["priority"]) == ("high", "normal")
    listed = (await api.client.get(JOBS)).json()["jobs"]
    assert [(record["id"], record["priority"]) for record in listed] == [
        (plain["id"], "normal"),
        (urgent["id"], "high"),
    ]
    (entry,) = [one for one in (await api.client.get("/api/v1/catalog")).json()["jobs"] if one["name"] == "web_add"]
    assert entry["priority"] == "normal"


async def test_what_is_no_priority_is_refused_in_one_sentence(api: "Api", subtests: pytest.Subtests) -> None:
    for priority in ["urgent", "HIGH", "", 1, True, ["high"]]:
        with subtests.test(priority=priority):
            answer = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}, "priority": priority})
            assert answer.status_code == 422
            assert answer.json()["detail"] == "priority: Input should be 'high', 'normal' or 'low'"
    assert await api.recorded() == 0


async def test_only_the_given_arguments_are_recorded(api: "Api") -> None:
    assert (await api.submit("web_add", {"x": 1}))["args"] == {"x": 1}


async def test_a_job_of_nothing_needs_no_args(api: "Api") -> None:
    answer = await api.client.post(JOBS, json={"job": "web:any.thing"})
    assert (answer.status_code, answer.json()["args"]) == (202, {})


async def test_json_under_its_other_names_is_read(api: "Api", subtests: pytest.Subtests) -> None:
    for content_type in ["application/json; charset=UTF-8", "application/vnd.cplane+json", "APPLICATION/JSON"]:
        with subtests.test(content_type=content_type):
            answer = await api.post_raw(b'{"job": "web_add", "args": {"x": 1}}', content_type)
            assert answer.status_code == 202


async def test_queue_and_delay_are_options_of_a_submission(api: "Api") -> None:
    record = await api.submit(queue="slow", delay=3600)
    assert record["queue"] == "slow"
    until_due = datetime.fromisoformat(record["run_at"]) - datetime.fromisoformat(record["created_at"])
    assert abs(until_due - timedelta(hours=1)) < timedelta(seconds=5)


async def test_at_is_a_moment_whatever_its_offset(api: "Api") -> None:
    record = await api.submit(at="2090-01-01T12:00:00+02:00")
    assert record["run_at"] == "2090-01-01T10:00:00Z"


async def test_a_waiting_submission_answers_200_with_the_result(api: "Api", hand: "Hand") -> None:
    body = {"job": "web_add", "args": {"x": 1, "y": 2}}
    waiting = asyncio.create_task(api.client.post(JOBS, params={"wait": 20}, json=body))
    record_id = await recorded_id(api)
    await hand.succeed(await hand.start(record_id), 3)

    answer = await waiting
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["result"]) == ("succeeded", 3)
    assert answer.headers["location"] == f"{JOBS}/{record_id}"


async def test_a_wait_that_is_too_short_answers_202_with_the_record_as_it_stands(api: "Api") -> None:
    body = {"job": "web_add", "args": {"x": 1}}
    answer = await api.client.post(JOBS, params={"wait": 0.05}, json=body)
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


async def test_a_record_can_be_waited_for(api: "Api", hand: "Hand") -> None:
    record = await api.submit()
    waiting = asyncio.create_task(api.client.get(record["url"], params={"wait": 20}))
    await hand.fail(await hand.start(record["id"]))
    answer = await waiting
    assert (answer.status_code, answer.json()["state"]) == (200, "failed")
    assert (await api.client.get(record["url"], params={"wait": 20})).json() == answer.json()


async def test_a_record_that_is_not_final_in_time_is_shown_as_it_stands(api: "Api") -> None:
    record = await api.submit()
    answer = await api.client.get(record["url"], params={"wait": 0.05})
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


async def test_a_failed_record_has_its_error_and_its_attempts(api: "Api", hand: "Hand") -> None:
    record = await api.submit()
    await hand.fail(await hand.start(record["id"]), "no such thing")

    shown = (await api.client.get(record["url"])).json()
    error = {"type": "ValueError", "message": "no such thing", "traceback": "Traceback: line 1"}
    assert (shown["state"], shown["error"], shown["failures"], shown["worker"]) == ("failed", error, 1, "hand")
    (attempt,) = shown["attempts"]
    assert attempt["error"] == error
    assert (attempt["attempt"], attempt["worker"], attempt["cause"], attempt["state"]) == (
        1,
        "hand",
        "submit",
        "failed",
    )
    assert attempt["finished_at"] >= attempt["started_at"]


async def test_no_answer_tells_a_lease_or_a_hash(api: "Api", hand: "Hand") -> None:
    answer = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}}, headers={"idempotency-key": "k"})
    started = await hand.start(answer.json()["id"])
    shown = await api.client.get(answer.json()["url"])
    listed = await api.client.get(JOBS)
    for text in (shown.text, listed.text):
        assert started.token not in text
        assert "lease" not in text
        assert "hash" not in text


class TestIdempotency:
    async def test_the_same_request_answers_the_first_record(self, api: "Api") -> None:
        first, again = [await post(api, "a key", {"x": 1}) for _ in range(2)]
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json() == again.json()
        assert first.json()["key"] == "a key"
        assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
        assert await api.recorded() == 1

    async def test_twenty_at_once_make_one_record(self, api: "Api") -> None:
        answers = await asyncio.gather(*(post(api, "at once", {"x": 1}) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1

    async def test_a_final_record_is_answered_with_200(self, api: "Api", hand: "Hand") -> None:
        record = (await post(api, "done", {"x": 1})).json()
        await hand.succeed(await hand.start(record["id"]), 1)
        again = await post(api, "done", {"x": 1})
        assert (again.status_code, again.json()["result"]) == (200, 1)

    async def test_a_key_in_quotes_is_the_same_key(self, api: "Api") -> None:
        first, again = await post(api, "quoted", {"x": 1}), await post(api, '"quoted"', {"x": 1})
        assert first.json()["id"] == again.json()["id"]

    async def test_the_same_moment_with_another_offset_is_the_same_request(self, api: "Api") -> None:
        first = await post(api, "moment", {"x": 1}, at="2090-01-01T12:00:00+02:00")
        again = await post(api, "moment", {"x": 1}, at="2090-01-01T10:00:00Z")
        assert first.json()["id"] == again.json()["id"]

    async def test_another_request_with_the_key_answers_422(self, api: "Api") -> None:
        await post(api, "reused", {"x": 1})
        answer = await post(api, "reused", {"x": 2})
        assert answer.status_code == 422
        assert answer.json()["type"] == "/problems/idempotency-key-reused"
        assert "new key" in answer.json()["hint"]
        assert await api.recorded() == 1

    async def test_a_key_that_cannot_be_one_answers_422(self, api: "Api", subtests: pytest.Subtests) -> None:
        for key in ["", "k" * 256, "tab\tinside", '""']:
            with subtests.test(key=key):
                answer = await post(api, key, {"x": 1})
                assert answer.status_code == 422
                assert [fault["header"] for fault in answer.json()["errors"]] == ["Idempotency-Key"]
                assert await api.recorded() == 0

    async def test_two_keys_answer_422(self, api: "Api") -> None:
        headers = [("idempotency-key", "one"), ("idempotency-key", "two")]
        answer = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}}, headers=headers)
        assert answer.status_code == 422

    async def test_a_key_of_255_characters_is_one(self, api: "Api") -> None:
        assert (await post(api, "k" * 255, {"x": 1})).status_code == 202


class TestList:
    async def test_pages_follow_each_other_newest_first(self, api: "Api") -> None:
        submitted = [(await api.submit("web_add", {"x": number}))["id"] for number in range(5)]

        page = await api.client.get(JOBS, params={"limit": 2, "job": "web_add"})
        seen = [record["id"] for record in page.json()["jobs"]]
        while (cursor := page.json()["next"]) is not None:
            assert page.links["next"]["url"] == f"{JOBS}?job=web_add&limit=2&cursor={cursor}"
            page = await api.client.get(page.links["next"]["url"])
            seen += [record["id"] for record in page.json()["jobs"]]

        assert seen == submitted[::-1]
        assert "link" not in page.headers

    async def test_a_full_last_page_has_no_next(self, api: "Api") -> None:
        await api.submit()
        await api.submit()
        page = await api.client.get(JOBS, params={"limit": 2})
        assert (len(page.json()["jobs"]), page.json()["next"]) == (2, None)

    async def test_records_are_filtered_by_state_job_and_queue(self, api: "Api") -> None:
        plain = await api.submit("web_add", {"x": 1})
        other = await api.submit("web:any.thing", {}, queue="other")
        cancelled = await api.submit("web_add", {"x": 2})
        await api.client.post(f"{cancelled['url']}/cancel")

        assert await listed(api, state="queued") == [other["id"], plain["id"]]
        assert await listed(api, state="cancelled") == [cancelled["id"]]
        assert await listed(api, job="web:any.thing") == [other["id"]]
        assert await listed(api, queue="default") == [cancelled["id"], plain["id"]]
        assert await listed(api, queue="default", state="queued") == [plain["id"]]
        assert await listed(api, job="never_heard_of") == []

    async def test_a_summary_leaves_out_what_is_large(self, api: "Api", hand: "Hand") -> None:
        record = await api.submit()
        await hand.fail(await hand.start(record["id"]))
        (summary,) = (await api.client.get(JOBS)).json()["jobs"]
        assert summary["error"] == {"type": "ValueError", "message": "broken"}
        assert not {"args", "result", "attempts", "artifacts"} & set(summary)

    async def test_a_wrong_parameter_is_named(self, api: "Api", subtests: pytest.Subtests) -> None:
        for parameter, value in [
            *(("limit", value) for value in ("abc", "0", "201", "-1", "1.5", "")),
            *(("state", value) for value in ("lost", "", "QUEUED")),
            *(("cursor", value) for value in ("", "x", "AAAA", "not base64!", "AaIJXqIzczWlzPoSPDcx8wAA", "\0")),
            *(("job", value) for value in ("\0", "a b", "x" * 201, "", "name\n")),
            *(("queue", value) for value in ("\0", "a:b", "é", "")),
            *(("colour", value) for value in ("red",)),
        ]:
            with subtests.test(parameter=parameter, value=value):
                answer = await api.client.get(JOBS, params={parameter: value})
                assert answer.status_code == 422, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                assert [fault["parameter"] for fault in answer.json()["errors"]] == [parameter]
                assert answer.json()["detail"].startswith(f"{parameter}: ")

    async def test_a_parameter_given_twice_is_named(self, api: "Api") -> None:
        answer = await api.client.get(f"{JOBS}?limit=1&limit=2")
        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "limit")


async def test_a_wait_out_of_bounds_is_named_and_nothing_is_recorded(api: "Api", subtests: pytest.Subtests) -> None:
    for wait in ["-1", "61", "nan", "inf", "soon", ""]:
        with subtests.test(wait=wait):
            for answer in (
                await api.client.post(JOBS, params={"wait": wait}, json={"job": "web_add", "args": {"x": 1}}),
                await api.client.get(f"{JOBS}/{UNKNOWN}", params={"wait": wait}),
            ):
                assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "wait")
            assert await api.recorded() == 0


class TestCancel:
    async def test_a_queued_job_is_cancelled_at_once(self, api: "Api") -> None:
        record = await api.submit()
        answer = await api.client.post(f"{record['url']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")

    async def test_a_running_job_is_told(self, api: "Api", hand: "Hand") -> None:
        record = await api.submit()
        await hand.start(record["id"])
        answer = await api.client.post(f"{record['url']}/cancel")
        assert (answer.status_code, answer.json()["state"], answer.json()["cancel_requested"]) == (202, "running", True)

    async def test_a_waiting_client_hears_of_it(self, api: "Api") -> None:
        record = await api.submit()
        waiting = asyncio.create_task(api.client.get(record["url"], params={"wait": 20}))
        await api.client.post(f"{record['url']}/cancel")
        assert (await waiting).json()["state"] == "cancelled"

    async def test_a_final_job_stays_as_it_is(self, api: "Api", hand: "Hand") -> None:
        record = await api.submit()
        await hand.succeed(await hand.start(record["id"]), 3)
        answer = await api.client.post(f"{record['url']}/cancel")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/invalid-transition")
        assert "succeeded" in answer.json()["detail"]
        assert (await api.client.get(record["url"])).json()["state"] == "succeeded"


class TestRetry:
    async def test_a_failed_job_is_queued_again(self, api: "Api", hand: "Hand") -> None:
        record = await api.submit()
        await hand.fail(await hand.start(record["id"]))
        answer = await api.client.post(f"{record['url']}/retry")
        assert answer.status_code == 202
        again = answer.json()
        assert (again["state"], again["failures"], again["error"], again["attempt"]) == ("queued", 0, None, 1)
        await hand.succeed(await hand.start(record["id"]), 3)
        assert len((await api.client.get(record["url"])).json()["attempts"]) == 2

    @pytest.mark.parametrize("state", ["queued", "succeeded"])
    async def test_another_state_does_not_allow_it(self, api: "Api", hand: "Hand", state: str) -> None:
        record = await api.submit()
        if state == "succeeded":
            await hand.succeed(await hand.start(record["id"]), 3)
        answer = await api.client.post(f"{record['url']}/retry")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/invalid-transition")
        assert (await api.client.get(record["url"])).json()["state"] == state


async def test_an_unknown_id_answers_404(api: "Api", subtests: pytest.Subtests) -> None:
    for record_id in [UNKNOWN, "1", "x" * 5000, "{" + UNKNOWN + "}", UNKNOWN.replace("-", ""), "%00", "%F0%9F%98%80"]:
        for method, below in [("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/artifacts/a.png")]:
            with subtests.test(record_id=record_id, method=method, below=below):
                answer = await api.client.request(method, f"{JOBS}/{record_id}{below}")
                assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-id")


async def test_an_id_in_capitals_is_the_same_id(api: "Api") -> None:
    record = await api.submit()
    assert (await api.client.get(f"{JOBS}/{record['id'].upper()}")).json() == record


async def test_a_delayed_job_is_due_later(api: "Api") -> None:
    before = datetime.now(UTC)
    record = await api.submit(delay=0.5)
    assert datetime.fromisoformat(record["run_at"]) > before


async def post(api: "Api", key: str, args: dict[str, Any], **more: Any) -> httpx2.Response:
    body = {"job": "web_add", "args": args, **more}
    return await api.client.post(JOBS, json=body, headers={"idempotency-key": key})


async def listed(api: "Api", **where: str) -> list[str]:
    answer = await api.client.get(JOBS, params=where)
    return [record["id"] for record in answer.json()["jobs"]]


async def recorded_id(api: "Api") -> str:
    """The id of the one record, as soon as it is there."""
    while True:
        if records := (await api.client.get(JOBS)).json()["jobs"]:
            return str(records[0]["id"])
