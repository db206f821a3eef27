"""Jobs over HTTP: submit, list, get, cancel, retry."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

if TYPE_CHECKING:
    from tests.web.conftest import Api, FakeWorker

JOBS = "/api/v1/jobs"
UNKNOWN = "01890000-0000-7000-8000-000000000000"


async def test_a_submission_returns_202_with_location_and_record(api: "Api") -> None:
    response = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1, "y": 2}})

    assert response.status_code == 202
    assert response.headers["content-type"] == "application/json"
    record = response.json()
    assert response.headers["location"] == record["url"] == f"{JOBS}/{record['id']}"
    assert "idempotency-replayed" not in response.headers
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
        "timeout": None,
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


async def test_the_immediate_response_is_the_record(api: "Api", subtests: pytest.Subtests) -> None:
    bodies: list[dict[str, Any]] = [
        {"job": "web:any.thing", "args": {"value": {"é": [1, 1.5, 1e3, True, None, "\u2028", {}]}}},
        {"job": "web_visit", "args": {"url": "http://localhost", "size": {"width": 1}, "tags": ["a", "b"]}},
        {"job": "web_add", "args": {"x": 1}, "queue": "slow", "priority": "high", "delay": 60, "timeout": 5},
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


async def test_an_invalid_priority_is_refused_in_one_sentence(api: "Api", subtests: pytest.Subtests) -> None:
    for priority in ["urgent", "HIGH", "", 1, True, ["high"]]:
        with subtests.test(priority=priority):
            response = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}, "priority": priority})
            assert response.status_code == 422
            assert response.json()["detail"] == "priority: Input should be 'high', 'normal' or 'low'"
    assert await api.count_records() == 0


async def test_a_timeout_that_the_job_does_not_allow_is_refused_in_one_sentence(
    api: "Api", subtests: pytest.Subtests
) -> None:
    sent: list[tuple[Any, str]] = [
        (300.5, "the timeout of 'web_add' must be more than 0 and at most 300 seconds, not 300.5"),
        (0, "timeout: Input should be greater than 0"),
        (-1, "timeout: Input should be greater than 0"),
        (1e300, "timeout: Input should be less than or equal to 316224000"),
        ("5", "timeout: Input should be a valid number"),
        (True, "timeout: Input should be a valid number"),
        ([5], "timeout: Input should be a valid number"),
    ]
    for timeout, message in sent:
        with subtests.test(timeout=timeout):
            response = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}, "timeout": timeout})
            problem = response.json()
            assert (response.status_code, problem["detail"]) == (422, message)
            assert [error["pointer"] for error in problem["errors"]] == ["/timeout"]
    for timeout in (b"NaN", b"Infinity", b"1e999"):
        with subtests.test(timeout=timeout):
            refused = await api.post_raw(b'{"job": "web_add", "args": {"x": 1}, "timeout": ' + timeout + b"}")
            assert refused.status_code in {400, 422}
    assert await api.count_records() == 0


async def test_only_the_given_arguments_are_recorded(api: "Api") -> None:
    assert (await api.submit("web_add", {"x": 1}))["args"] == {"x": 1}


async def test_a_job_without_arguments_needs_no_args(api: "Api") -> None:
    response = await api.client.post(JOBS, json={"job": "web:any.thing"})
    assert (response.status_code, response.json()["args"]) == (202, {})


async def test_other_json_media_types_are_accepted(api: "Api", subtests: pytest.Subtests) -> None:
    for content_type in ["application/json; charset=UTF-8", "application/vnd.cplane+json", "APPLICATION/JSON"]:
        with subtests.test(content_type=content_type):
            response = await api.post_raw(b'{"job": "web_add", "args": {"x": 1}}', content_type)
            assert response.status_code == 202


async def test_queue_and_delay_are_options_of_a_submission(api: "Api") -> None:
    record = await api.submit(queue="slow", delay=3600)
    assert record["queue"] == "slow"
    until_start = datetime.fromisoformat(record["run_at"]) - datetime.fromisoformat(record["created_at"])
    assert abs(until_start - timedelta(hours=1)) < timedelta(seconds=5)


async def test_at_is_converted_to_utc(api: "Api") -> None:
    record = await api.submit(at="2090-01-01T12:00:00+02:00")
    assert record["run_at"] == "2090-01-01T10:00:00Z"


async def test_a_waiting_submission_returns_200_with_the_result(api: "Api", fake_worker: "FakeWorker") -> None:
    body = {"job": "web_add", "args": {"x": 1, "y": 2}}
    waiting = asyncio.create_task(api.client.post(JOBS, params={"wait": 20}, json=body))
    record_id = await recorded_id(api)
    await fake_worker.succeed(await fake_worker.start(record_id), 3)

    response = await waiting
    assert response.status_code == 200
    assert (response.json()["state"], response.json()["result"]) == ("succeeded", 3)
    assert response.headers["location"] == f"{JOBS}/{record_id}"


async def test_a_submission_whose_wait_runs_out_returns_202_with_the_current_record(api: "Api") -> None:
    body = {"job": "web_add", "args": {"x": 1}}
    response = await api.client.post(JOBS, params={"wait": 0.05}, json=body)
    assert (response.status_code, response.json()["state"]) == (202, "queued")


async def test_get_waits_for_a_record(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await api.submit()
    waiting = asyncio.create_task(api.client.get(record["url"], params={"wait": 20}))
    await fake_worker.fail(await fake_worker.start(record["id"]))
    response = await waiting
    assert (response.status_code, response.json()["state"]) == (200, "failed")
    assert (await api.client.get(record["url"], params={"wait": 20})).json() == response.json()


async def test_get_returns_the_current_record_when_its_wait_runs_out(api: "Api") -> None:
    record = await api.submit()
    response = await api.client.get(record["url"], params={"wait": 0.05})
    assert (response.status_code, response.json()["state"]) == (200, "queued")


async def test_a_failed_record_has_its_error_and_its_attempts(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await api.submit()
    await fake_worker.fail(await fake_worker.start(record["id"]), "no such thing")

    shown = (await api.client.get(record["url"])).json()
    error = {"type": "ValueError", "message": "no such thing", "traceback": "Traceback: line 1"}
    assert (shown["state"], shown["error"], shown["failures"], shown["worker"]) == ("failed", error, 1, "fake")
    (attempt,) = shown["attempts"]
    assert attempt["error"] == error
    assert (attempt["attempt"], attempt["worker"], attempt["cause"], attempt["state"]) == (
        1,
        "fake",
        "submit",
        "failed",
    )
    assert attempt["finished_at"] >= attempt["started_at"]


async def test_no_response_contains_a_lease_or_a_hash(api: "Api", fake_worker: "FakeWorker") -> None:
    response = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}}, headers={"idempotency-key": "k"})
    started = await fake_worker.start(response.json()["id"])
    shown = await api.client.get(response.json()["url"])
    listed = await api.client.get(JOBS)
    for text in (shown.text, listed.text):
        assert started.token not in text
        assert "lease" not in text
        assert "hash" not in text


class TestIdempotency:
    async def test_a_repeated_request_returns_the_first_record(self, api: "Api") -> None:
        first, again = [await post(api, "a key", {"x": 1}) for _ in range(2)]
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json() == again.json()
        assert first.json()["key"] == "a key"
        assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
        assert await api.count_records() == 1

    async def test_twenty_concurrent_requests_create_one_record(self, api: "Api") -> None:
        responses = await asyncio.gather(*(post(api, "at once", {"x": 1}) for _ in range(20)))
        assert {response.status_code for response in responses} == {202}
        assert len({response.json()["id"] for response in responses}) == 1
        assert sum("idempotency-replayed" not in response.headers for response in responses) == 1

    async def test_a_repeated_request_returns_200_once_the_record_is_final(
        self, api: "Api", fake_worker: "FakeWorker"
    ) -> None:
        record = (await post(api, "done", {"x": 1})).json()
        await fake_worker.succeed(await fake_worker.start(record["id"]), 1)
        again = await post(api, "done", {"x": 1})
        assert (again.status_code, again.json()["result"]) == (200, 1)

    async def test_a_key_in_quotes_is_the_same_key(self, api: "Api") -> None:
        first, again = await post(api, "quoted", {"x": 1}), await post(api, '"quoted"', {"x": 1})
        assert first.json()["id"] == again.json()["id"]

    async def test_the_same_moment_with_another_offset_is_the_same_request(self, api: "Api") -> None:
        first = await post(api, "moment", {"x": 1}, at="2090-01-01T12:00:00+02:00")
        again = await post(api, "moment", {"x": 1}, at="2090-01-01T10:00:00Z")
        assert first.json()["id"] == again.json()["id"]

    async def test_another_request_with_the_key_returns_422(self, api: "Api") -> None:
        await post(api, "reused", {"x": 1})
        response = await post(api, "reused", {"x": 2})
        assert response.status_code == 422
        assert response.json()["type"] == "/problems/idempotency-key-reused"
        assert "new key" in response.json()["hint"]
        assert await api.count_records() == 1

    async def test_an_invalid_key_returns_422(self, api: "Api", subtests: pytest.Subtests) -> None:
        for key in ["", "k" * 256, "tab\tinside", '""']:
            with subtests.test(key=key):
                response = await post(api, key, {"x": 1})
                assert response.status_code == 422
                assert [each["header"] for each in response.json()["errors"]] == ["Idempotency-Key"]
                assert await api.count_records() == 0

    async def test_two_keys_return_422(self, api: "Api") -> None:
        headers = [("idempotency-key", "one"), ("idempotency-key", "two")]
        response = await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 1}}, headers=headers)
        assert response.status_code == 422

    async def test_a_key_of_255_characters_is_accepted(self, api: "Api") -> None:
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

    async def test_a_summary_omits_large_members(self, api: "Api", fake_worker: "FakeWorker") -> None:
        record = await api.submit()
        await fake_worker.fail(await fake_worker.start(record["id"]))
        (summary,) = (await api.client.get(JOBS)).json()["jobs"]
        assert summary["error"] == {"type": "ValueError", "message": "broken"}
        assert not {"args", "result", "attempts", "artifacts"} & set(summary)

    async def test_an_invalid_parameter_is_named(self, api: "Api", subtests: pytest.Subtests) -> None:
        for parameter, value in [
            *(("limit", value) for value in ("abc", "0", "201", "-1", "1.5", "")),
            *(("state", value) for value in ("lost", "", "QUEUED")),
            *(("cursor", value) for value in ("", "x", "AAAA", "not base64!", "AaIJXqIzczWlzPoSPDcx8wAA", "\0")),
            *(("job", value) for value in ("\0", "a b", "x" * 201, "", "name\n")),
            *(("queue", value) for value in ("\0", "a:b", "é", "")),
            *(("colour", value) for value in ("red",)),
        ]:
            with subtests.test(parameter=parameter, value=value):
                response = await api.client.get(JOBS, params={parameter: value})
                assert response.status_code == 422, response.text
                assert response.headers["content-type"] == "application/problem+json"
                assert [each["parameter"] for each in response.json()["errors"]] == [parameter]
                assert response.json()["detail"].startswith(f"{parameter}: ")

    async def test_a_repeated_parameter_is_named(self, api: "Api") -> None:
        response = await api.client.get(f"{JOBS}?limit=1&limit=2")
        assert (response.status_code, response.json()["errors"][0]["parameter"]) == (422, "limit")


async def test_a_wait_out_of_bounds_is_named_and_nothing_is_recorded(api: "Api", subtests: pytest.Subtests) -> None:
    for wait in ["-1", "61", "nan", "inf", "soon", ""]:
        with subtests.test(wait=wait):
            for response in (
                await api.client.post(JOBS, params={"wait": wait}, json={"job": "web_add", "args": {"x": 1}}),
                await api.client.get(f"{JOBS}/{UNKNOWN}", params={"wait": wait}),
            ):
                assert (response.status_code, response.json()["errors"][0]["parameter"]) == (422, "wait")
            assert await api.count_records() == 0


class TestCancel:
    async def test_a_queued_job_is_cancelled_immediately(self, api: "Api") -> None:
        record = await api.submit()
        response = await api.client.post(f"{record['url']}/cancel")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")

    async def test_the_cancel_of_a_running_job_returns_202(self, api: "Api", fake_worker: "FakeWorker") -> None:
        record = await api.submit()
        await fake_worker.start(record["id"])
        response = await api.client.post(f"{record['url']}/cancel")
        assert (response.status_code, response.json()["state"], response.json()["cancel_requested"]) == (
            202,
            "running",
            True,
        )

    async def test_a_waiting_client_is_notified(self, api: "Api") -> None:
        record = await api.submit()
        waiting = asyncio.create_task(api.client.get(record["url"], params={"wait": 20}))
        await api.client.post(f"{record['url']}/cancel")
        assert (await waiting).json()["state"] == "cancelled"

    async def test_a_final_job_is_not_changed(self, api: "Api", fake_worker: "FakeWorker") -> None:
        record = await api.submit()
        await fake_worker.succeed(await fake_worker.start(record["id"]), 3)
        response = await api.client.post(f"{record['url']}/cancel")
        assert (response.status_code, response.json()["type"]) == (409, "/problems/invalid-transition")
        assert "succeeded" in response.json()["detail"]
        assert (await api.client.get(record["url"])).json()["state"] == "succeeded"


class TestRetry:
    async def test_a_failed_job_is_requeued(self, api: "Api", fake_worker: "FakeWorker") -> None:
        record = await api.submit()
        await fake_worker.fail(await fake_worker.start(record["id"]))
        response = await api.client.post(f"{record['url']}/retry")
        assert response.status_code == 202
        again = response.json()
        assert (again["state"], again["failures"], again["error"], again["attempt"]) == ("queued", 0, None, 1)
        await fake_worker.succeed(await fake_worker.start(record["id"]), 3)
        assert len((await api.client.get(record["url"])).json()["attempts"]) == 2

    @pytest.mark.parametrize("state", ["queued", "succeeded"])
    async def test_other_states_return_409(self, api: "Api", fake_worker: "FakeWorker", state: str) -> None:
        record = await api.submit()
        if state == "succeeded":
            await fake_worker.succeed(await fake_worker.start(record["id"]), 3)
        response = await api.client.post(f"{record['url']}/retry")
        assert (response.status_code, response.json()["type"]) == (409, "/problems/invalid-transition")
        assert (await api.client.get(record["url"])).json()["state"] == state


async def test_an_unknown_id_returns_404(api: "Api", subtests: pytest.Subtests) -> None:
    for record_id in [UNKNOWN, "1", "x" * 5000, "{" + UNKNOWN + "}", UNKNOWN.replace("-", ""), "%00", "%F0%9F%98%80"]:
        for method, below in [("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/artifacts/a.png")]:
            with subtests.test(record_id=record_id, method=method, below=below):
                response = await api.client.request(method, f"{JOBS}/{record_id}{below}")
                assert (response.status_code, response.json()["type"]) == (404, "/problems/unknown-id")


async def test_an_id_is_case_insensitive(api: "Api") -> None:
    record = await api.submit()
    assert (await api.client.get(f"{JOBS}/{record['id'].upper()}")).json() == record


async def test_a_delayed_job_is_scheduled_for_later(api: "Api") -> None:
    before = datetime.now(UTC)
    record = await api.submit(delay=0.5)
    assert datetime.fromisoformat(record["run_at"]) > before


async def post(api: "Api", key: str, args: dict[str, Any], **options: Any) -> httpx2.Response:
    body = {"job": "web_add", "args": args, **options}
    return await api.client.post(JOBS, json=body, headers={"idempotency-key": key})


async def listed(api: "Api", **where: str) -> list[str]:
    response = await api.client.get(JOBS, params=where)
    return [record["id"] for record in response.json()["jobs"]]


async def recorded_id(api: "Api") -> str:
    """The id of the only record, as soon as it exists."""
    while True:
        if records := (await api.client.get(JOBS)).json()["jobs"]:
            return str(records[0]["id"])
