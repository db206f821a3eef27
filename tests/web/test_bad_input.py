"""Invalid requests return the right problem, and nothing is recorded."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from cplane.web import body, routing
from cplane.web.handlers import jobs
from cplane.web.inputs import SubmitBody
from cplane.web.problems import BY_SLUG

if TYPE_CHECKING:
    from tests.web.conftest import Api

JOBS = "/api/v1/jobs"
MEBIBYTE = 1024 * 1024

WRONG_MEMBERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["/job"]),
    ({"job": None}, ["/job"]),
    ({"job": 1}, ["/job"]),
    ({"job": ""}, ["/job"]),
    ({"job": "x" * 201}, ["/job"]),
    ({"job": "web_add", "args": []}, ["/args"]),
    ({"job": "web_add", "args": "x=1"}, ["/args"]),
    ({"job": "web_add", "args": None}, ["/args"]),
    ({"job": "web_add", "arg": {}}, ["/arg"]),
    ({"job": "web_add", "key": "k"}, ["/key"]),
    ({"job": "web_add", "a/b~c": 1}, ["/a~1b~0c"]),
    ({"job": "web_add", "queue": "a b"}, ["/queue"]),
    ({"job": "web_add", "queue": ""}, ["/queue"]),
    ({"job": "web_add", "queue": 1}, ["/queue"]),
    ({"job": "web_add", "delay": -1}, ["/delay"]),
    ({"job": "web_add", "delay": "1"}, ["/delay"]),
    ({"job": "web_add", "delay": True}, ["/delay"]),
    ({"job": "web_add", "delay": 1e300}, ["/delay"]),
    ({"job": "web_add", "at": "tomorrow"}, ["/at"]),
    ({"job": "web_add", "at": "2090-01-01T12:00:00"}, ["/at"]),
    ({"job": "web_add", "at": 4_000_000_000}, ["/at"]),
    ({"job": "web_add", "at": "0001-01-01T00:00:00+23:00"}, ["/at"]),
    ({"job": "web_add", "at": "9999-12-31T23:59:59-23:00"}, ["/at"]),
    ({"job": "web_add", "delay": 1, "at": "2090-01-01T12:00:00Z"}, [""]),
    ({"job": 1, "args": 2, "more": 3}, ["/job", "/args", "/more"]),
]
"""Bodies, and pointers to their errors."""

WRONG_ARGUMENTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("web_add", {}, ["/args/x"]),
    ("web_add", {"x": "one"}, ["/args/x"]),
    ("web_add", {"x": 1.5, "y": None}, ["/args/x", "/args/y"]),
    ("web_add", {"x": 1, "z": 2}, ["/args/z"]),
    ("web_visit", {"url": "not a url"}, ["/args/url"]),
    ("web_visit", {"url": "https://example.org", "size": {"width": "wide"}}, ["/args/size/width"]),
    ("web_visit", {"url": "https://example.org", "tags": ["a", 2]}, ["/args/tags/1"]),
    ("web_visit", {"url": "https://example.org", "ctx": {}}, ["/args/ctx"]),
]
"""Jobs, arguments, and pointers to the errors of these."""

WRONG_NUMBERS: list[tuple[str, str, str]] = [
    ("web:any.thing", '{"value": 1e999}', "/args/value"),
    ("web:any.thing", '{"value": {"a/b": [0, -1e999]}}', "/args/value/a~1b/1"),
    ("web_number", '{"x": 1e999}', "/args/x"),
    ("web_number", f'{{"x": {"9" * 400}}}', "/args/x"),
    *(
        ("web_transient_any", f'{{"value": [{number}]}}', "/args/value/0")
        for number in (2**64, -(2**63) - 1, 10**30, "1e999")
    ),
]
"""Jobs, arguments as JSON, and the pointer to the number that is wrong."""

NOT_JSON: tuple[bytes, ...] = (
    *(
        b"",
        b" ",
        b"job",
        b"{",
        b'{"job": "web_add"',
        b"{'job': 'web_add'}",
        b'{"job": "web_add",}',
        b'{"job": "web_add"} {}',
    ),
    *(
        b"\xff\xfe{\x00}\x00",
        b'\xef\xbb\xbf{"job": "web_add"}',
        b'{"job": "\xff"}',
        b'{"job": "\xed\xa0\x80"}',
        b'{"job": "a\x00"}',
    ),
    *(b'{"job": "web_any", "args": {"value": NaN}}', b'{"job": "web_any", "args": {"value": -Infinity}}'),
    b'{"job": "web_any", "args": {"value": ' + b"1" * 5000 + b"}}",
)


@pytest_asyncio.fixture(autouse=True)
async def nothing_recorded(api: "Api") -> AsyncGenerator[None]:
    """No test of this module creates a record."""
    yield
    assert await api.count_records() == 0


def problem(response: httpx2.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem of a response, which must have this type and conform to RFC 9457."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert (found["type"], found["status"], found["title"]) == (f"/problems/{slug}", status, BY_SLUG[slug].title)
    assert found["instance"] == response.request.url.path
    assert found["detail"]
    assert "Traceback" not in response.text
    assert set(found) <= {"type", "title", "status", "detail", "instance", "hint", "errors"}
    return found


def pointers(found: dict[str, Any]) -> list[str]:
    return [each["pointer"] for each in found["errors"]]


class TestBody:
    async def test_another_media_type_returns_415(self, api: "Api", subtests: pytest.Subtests) -> None:
        for content_type in ["", "text/plain", "application/x-www-form-urlencoded", "text/json", "application/json5"]:
            with subtests.test(content_type=content_type):
                found = problem(await api.post_raw(b'{"job": "web_add"}', content_type), 415, "unsupported-media-type")
                assert found["hint"] == "send Content-Type: application/json"

    async def test_another_charset_returns_415(self, api: "Api") -> None:
        problem(await api.post_raw(b"{}", "application/json; charset=utf-16"), 415, "unsupported-media-type")

    async def test_a_compressed_body_returns_415(self, api: "Api") -> None:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        problem(await api.client.post(JOBS, content=b"\x1f\x8b", headers=headers), 415, "unsupported-media-type")

    async def test_a_body_that_is_not_json_returns_400(self, api: "Api", subtests: pytest.Subtests) -> None:
        for sent in NOT_JSON:
            with subtests.test(sent=sent):
                problem(await api.post_raw(sent), 400, "not-json")

    async def test_a_deeply_nested_body_returns_400(self, api: "Api", subtests: pytest.Subtests) -> None:
        for depth, (opening, closing), closed in itertools.product(
            (201, 990, 1000, 5000, 140_000), ((b"[", b"]"), (b'{"a":', b"}")), (True, False)
        ):
            with subtests.test(depth=depth, opening=opening, closed=closed):
                nested = opening * depth + (b"1" + closing * depth if closed else b"")
                problem(await api.post_raw(nested), 400, "not-json")
                inside = b'{"job": "web:any.thing", "args": {"value": ' + nested + (b"}}" if closed else b"")
                problem(await api.post_raw(inside), 400, "not-json")

    async def test_json_that_is_not_an_object_returns_422(self, api: "Api", subtests: pytest.Subtests) -> None:
        for sent in [b"[]", b"null", b"1", b'"job"', b"true", b'[{"job": "web_add"}]']:
            with subtests.test(sent=sent):
                assert pointers(problem(await api.post_raw(sent), 422, "invalid-request")) == [""]

    async def test_an_invalid_member_is_pointed_at(self, api: "Api", subtests: pytest.Subtests) -> None:
        for sent, expected in WRONG_MEMBERS:
            with subtests.test(sent=sent, expected=expected):
                found = problem(await api.client.post(JOBS, json=sent), 422, "invalid-request")
                assert pointers(found) == expected

    async def test_an_infinite_delay_is_pointed_at(self, api: "Api") -> None:
        found = problem(await api.post_raw(b'{"job": "web_add", "delay": 1e999}'), 422, "invalid-request")
        assert pointers(found) == ["/delay"]

    async def test_a_duplicate_member_is_pointed_at(self, api: "Api", subtests: pytest.Subtests) -> None:
        for sent, expected in [
            (b'{"job": "web_add", "job": "web_add", "args": {"x": 1}}', ["/job"]),
            (b'{"job": "web_add", "args": {"x": 1, "x": 2}}', ["/args/x"]),
            (
                b'{"job": "web:any.thing", "args": {"value": [0, {"a": {"b/c": 1, "b/c": 2}}]}}',
                ["/args/value/1/a/b~1c"],
            ),
            (b'{"job": "web_add", "args": {"x": {"a": 1, "a": 2}, "x": 1}}', ["/args/x"]),
        ]:
            with subtests.test(sent=sent, expected=expected):
                assert pointers(problem(await api.post_raw(sent), 422, "invalid-request")) == expected

    async def test_a_duplicate_member_inside_an_overwritten_one_is_reported(self, api: "Api") -> None:
        sent = b'{"job": {"a": 1, "a": 2}, "args": {}, "job": "web_add"}'
        assert problem(await api.post_raw(sent), 422, "invalid-request")["errors"]

    async def test_text_that_cannot_be_stored_is_pointed_at(self, api: "Api", subtests: pytest.Subtests) -> None:
        for text in [r"\u0000", r"a\u0000b", r"\ud800", r"\udc00\ud800", r"\uD83D"]:
            with subtests.test(text=text):
                for sent, expected in (
                    (f'{{"job": "{text}"}}', "/job"),
                    (f'{{"job": "web:any.thing", "args": {{"value": ["a", "{text}"]}}}}', "/args/value/1"),
                    (f'{{"job": "web:any.thing", "args": {{"value": {{"{text}": 1}}}}}}', "/args/value"),
                ):
                    assert pointers(problem(await api.post_raw(sent.encode()), 422, "invalid-request")) == [expected]

    async def test_only_the_first_of_many_errors_are_reported(self, api: "Api") -> None:
        found = problem(
            await api.client.post(JOBS, json={f"member{n}": 1 for n in range(50_000)}), 422, "invalid-request"
        )
        assert len(found["errors"]) == 20
        assert "and 50000 more" in found["detail"]

    async def test_only_the_first_of_eighty_thousand_duplicate_members_are_reported(self, api: "Api") -> None:
        sent = ("{" + ",".join(f'"m{n % 40_000}":1' for n in range(80_000)) + "}").encode()
        assert len(sent) < MEBIBYTE
        assert len(problem(await api.post_raw(sent), 422, "invalid-request")["errors"]) == 20


class TestSize:
    async def test_a_declared_size_above_the_limit_returns_413(self, api: "Api") -> None:
        found = problem(await api.post_raw(b'{"job": "' + b"x" * MEBIBYTE + b'"}'), 413, "too-large")
        assert str(MEBIBYTE) in found["detail"]

    async def test_an_undeclared_size_is_counted_while_it_arrives(self, api: "Api") -> None:
        async def chunks() -> AsyncGenerator[bytes]:
            for _ in range(40):
                yield b"[" * 32 * 1024

        response = await api.client.post(JOBS, content=chunks(), headers={"content-type": "application/json"})
        problem(response, 413, "too-large")
        assert response.headers["connection"] == "close"

    async def test_a_large_body_gets_a_response_while_the_client_still_sends(self, api: "Api") -> None:
        problem(await api.post_raw(b" " * 30 * MEBIBYTE), 413, "too-large")

    async def test_a_refused_body_is_not_requested_after_expect_100_continue(self, api: "Api") -> None:
        lines = ["Content-Type: application/json", f"Content-Length: {10 * MEBIBYTE}", "Expect: 100-continue"]
        reader, writer = await connect(api, *lines)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()

    async def test_a_body_of_exactly_the_limit_is_read(self, api: "Api") -> None:
        padding = MEBIBYTE - len(b'{"job": "nobody"}')
        problem(await api.post_raw(b'{"job": "nobody"' + b" " * padding + b"}"), 422, "unknown-job")

    async def test_arguments_that_grow_above_the_limit_return_422(self, api: "Api") -> None:
        sent = b'{"job": "web:any.thing", "args": {"value": [' + b",".join([b"1e9"] * 200_000) + b"]}}"
        found = problem(await api.post_raw(sent), 422, "invalid-arguments")
        assert pointers(found) == ["/args"]

    async def test_a_body_that_does_not_arrive_returns_408(self, api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(routing, "BODY_TIMEOUT_S", 0.05)
        reader, writer = await connect(api, "Content-Type: application/json", "Content-Length: 100", "", '{"job":')
        response = await reader.read()
        assert response.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in response
        writer.close()

    async def test_a_client_that_disconnects_while_it_sends_causes_no_error(
        self, api: "Api", monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reading, ended = asyncio.Event(), asyncio.Event()
        read_body = body.read_body

        async def watched(*args: Any) -> Any:
            reading.set()
            try:
                return await read_body(*args)
            finally:
                ended.set()

        monkeypatch.setattr(jobs, "read_body", watched)
        _, writer = await connect(api, "Content-Type: application/json", "Content-Length: 100", "", '{"job":')
        with capture_logs() as logs:
            await reading.wait()
            writer.close()
            async with asyncio.timeout(10):
                await ended.wait()
            await api.count_records()
        assert not [line for line in logs if line["log_level"] != "debug"]


class TestArguments:
    async def test_an_unknown_job_lists_the_known_ones(self, api: "Api") -> None:
        found = problem(await api.client.post(JOBS, json={"job": "shot"}), 422, "unknown-job")
        assert found["detail"].startswith("no job named 'shot'; known: ")
        assert "web_add" in found["detail"]
        assert pointers(found) == ["/job"]

    async def test_an_invalid_argument_is_pointed_at(self, api: "Api", subtests: pytest.Subtests) -> None:
        for name, args, expected in WRONG_ARGUMENTS:
            with subtests.test(name=name, args=args, expected=expected):
                found = problem(await api.client.post(JOBS, json={"job": name, "args": args}), 422, "invalid-arguments")
                assert pointers(found) == expected
                assert name in found["detail"]

    async def test_a_number_that_cannot_be_kept_is_pointed_at(self, api: "Api", subtests: pytest.Subtests) -> None:
        for name, args, expected in WRONG_NUMBERS:
            with subtests.test(name=name, args=args):
                body = f'{{"job": "{name}", "args": {args}}}'.encode()
                assert pointers(problem(await api.post_raw(body), 422, "invalid-arguments")) == [expected]

    async def test_a_pattern_that_cannot_be_compiled_returns_422(self, api: "Api", subtests: pytest.Subtests) -> None:
        for pattern in ("a{99999999999}", "(", "a{2,1}"):
            with subtests.test(pattern=pattern):
                args = {"url": "http://127.0.0.1/", "reject_request_pattern": [pattern]}
                found = problem(
                    await api.client.post(JOBS, json={"job": "content", "args": args}), 422, "invalid-arguments"
                )
                assert pointers(found) == ["/args/reject_request_pattern/0"]

    async def test_an_unexpected_error_returns_500_without_details(self, api: "Api") -> None:
        with capture_logs() as logs:
            response = await api.client.post(JOBS, json={"job": "web_broken", "args": {"number": 13}})
        problem(response, 500, "internal-error")
        assert "hunter2" not in response.text
        (line,) = [line for line in logs if line["log_level"] == "error"]
        assert (line["path"], line["exc_info"]) == (JOBS, True)


class TestRouting:
    async def test_an_unknown_path_returns_404(self, api: "Api", subtests: pytest.Subtests) -> None:
        for path in [
            "/nothing",
            "/api",
            "/api/v1/jobs/",
            "/api/v2/jobs",
            "/static/",
            "/static/nothing.js",
            "/problems/x",
        ]:
            with subtests.test(path=path):
                problem(await api.client.get(path), 404, "not-found")

    async def test_only_bundled_files_are_served(self, api: "Api", subtests: pytest.Subtests) -> None:
        for path in ["/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00"]:
            with subtests.test(path=path):
                problem(await api.client.get(path), 404, "not-found")

    async def test_another_method_returns_405_with_the_allowed_ones(
        self, api: "Api", subtests: pytest.Subtests
    ) -> None:
        for method, path, allow in [
            ("PUT", JOBS, "POST, GET, HEAD, OPTIONS"),
            ("DELETE", f"{JOBS}/1", "GET, HEAD, OPTIONS"),
            ("GET", f"{JOBS}/1/cancel", "POST, OPTIONS"),
            ("HEAD", f"{JOBS}/1/retry", "POST, OPTIONS"),
            ("POST", "/livez", "GET, HEAD, OPTIONS"),
            ("PROPFIND", "/", "GET, HEAD, OPTIONS"),
            ("POST", "/static/docs.js", "GET, HEAD"),
        ]:
            with subtests.test(method=method, path=path, allow=allow):
                response = await api.client.request(method, path)
                assert (response.status_code, response.headers["allow"]) == (405, allow)
                if method != "HEAD":
                    problem(response, 405, "method-not-allowed")

    async def test_options_returns_the_methods(self, api: "Api", subtests: pytest.Subtests) -> None:
        for path, allow in [(JOBS, "POST, GET, HEAD, OPTIONS"), (f"{JOBS}/1/cancel", "POST, OPTIONS")]:
            with subtests.test(path=path, allow=allow):
                response = await api.client.options(path)
                assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")
                assert not [name for name in response.headers if name.startswith("access-control")]

    async def test_head_returns_the_headers_of_get(self, api: "Api", subtests: pytest.Subtests) -> None:
        for path in [JOBS, "/api/v1/catalog", "/openapi.json", "/docs", "/livez", "/readyz"]:
            with subtests.test(path=path):
                got, headed = await api.client.get(path), await api.client.head(path)
                assert (headed.status_code, headed.content) == (200, b"")
                assert headed.headers["content-length"] == str(len(got.content))
                assert headed.headers["content-type"] == got.headers["content-type"]


async def test_every_problem_type_has_a_page(api: "Api") -> None:
    for problem_type in BY_SLUG.values():
        response = await api.client.get(problem_type.uri)
        assert (response.status_code, problem_type.description in response.text) == (200, True)


async def connect(api: "Api", *lines: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and begin a POST on it: header lines, then a body after an empty line."""
    url = api.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = lines if "" in lines else (*lines, "", "")
    writer.write("\r\n".join([f"POST {JOBS} HTTP/1.1", f"Host: {url.host}", *head]).encode())
    await writer.drain()
    return reader, writer


def test_pointers_are_built_only_for_the_errors_of_deep_and_wide_bodies() -> None:
    wide = json.dumps({"job": {"k" * 200_000: [0] * 200_000}}).encode()[:-1] + b', "job": 1}'
    with pytest.raises(Exception, match="given more than once"):
        body.parse(wide, SubmitBody)
