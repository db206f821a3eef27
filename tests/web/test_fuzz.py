"""Whatever is sent, the response is one that the OpenAPI document names, and never a 500."""

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.web.conftest import Api

JOBS = "/api/v1/jobs"
SESSIONS = "/api/v1/sessions"
AS_JSON = {"content-type": "application/json"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(["web_add", "web_visit", "web:any.thing", "web_same", "x"]) | st.text(max_size=8)
bodies = st.fixed_dictionaries(
    {
        "job": names | json_values,
        "args": st.dictionaries(st.sampled_from(["x", "y", "value", "url"]), json_values) | json_values,
    },
    optional={
        "queue": json_values,
        "delay": json_values,
        "timeout": json_values,
        "at": json_values | st.datetimes().map(str),
        "key": json_values,
    },
)
INDEXED: Any = [{"name": "n", "version": 1, "stores": [{}]}]
members = st.fixed_dictionaries(
    {},
    optional={
        "name": json_values,
        "value": st.text(max_size=5) | json_values,
        "domain": st.just("example.com") | json_values,
        "path": st.just("/") | json_values,
        "expires": json_values,
        "origin": st.just("https://example.com") | json_values,
        "localStorage": st.just([{"name": "n", "value": "v"}]) | json_values,
        "indexedDB": st.just(INDEXED) | json_values,
    },
)
states = st.fixed_dictionaries(
    {},
    optional={
        "cookies": st.lists(members, max_size=2) | json_values,
        "origins": st.lists(members, max_size=2) | json_values,
        "more": json_values,
    },
)
parameters = st.dictionaries(
    st.sampled_from(["limit", "cursor", "state", "job", "queue", "x"]),
    st.text(max_size=12) | st.integers().map(str),
    max_size=4,
)
bounded = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(response: Any, allowed: set[int]) -> None:
    assert response.status_code in allowed, response.text
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"]


@bounded
@given(sent=bodies | json_values)
async def test_any_json_is_accepted_or_refused(api: "Api", sent: Any) -> None:
    check(await api.post_raw(json.dumps(sent).encode()), {202, 422})


@bounded
@given(sent=st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0d8 job1', max_size=60).map(str.encode))
async def test_any_bytes_are_accepted_or_refused(api: "Api", sent: bytes) -> None:
    check(await api.post_raw(sent), {202, 400, 422})


@bounded
@given(sent=states | json_values)
async def test_any_json_is_a_session_or_refused(api: "Api", sent: Any) -> None:
    check(await api.client.put(f"{SESSIONS}/fuzz", content=json.dumps(sent), headers=AS_JSON), {200, 201, 422})


@bounded
@given(name=st.text(alphabet="/.%?#abc é0-@:\0", max_size=20).filter(lambda name: name not in {".", ".."}))
async def test_any_session_name_is_accepted_or_refused(api: "Api", name: str) -> None:
    path = f"{SESSIONS}/{quote(name, safe='')}"
    check(await api.client.put(path, json={"cookies": []}), {200, 201, 404, 422})
    check(await api.client.get(path), {200, 404})
    response = await api.client.delete(path)
    assert response.status_code in {204, 404, 405}, response.text


@bounded
@given(where=parameters)
async def test_any_query_is_accepted_or_refused(api: "Api", where: dict[str, str]) -> None:
    check(await api.client.get(JOBS, params=where), {200, 422})


@bounded
@given(path=st.text(alphabet="/.%?#abc é0-", max_size=20))
async def test_any_path_is_accepted_or_refused(api: "Api", path: str) -> None:
    response = await api.client.get(f"{JOBS}/{path}")
    check(response, {200, 404, 422})
