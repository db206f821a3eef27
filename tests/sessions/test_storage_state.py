"""The content of browser sessions: accepts Playwright's storage_state with any text of a page, and rejects all else."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright

from cplane.browser import find_executable
from cplane.errors import InvalidSession, SessionTooLarge
from cplane.sessions.storage_state import MAX_BYTES, decode, empty, encode

COOKIE = {"name": "sid", "value": "hunter2", "domain": "example.com", "path": "/"}
PAGE = """
    <script>
      localStorage.setItem('token', 'a\\u0000b\\ud800c');
      document.cookie = 'sid=1; max-age=1000';
    </script>
"""


def state(**parts: Any) -> dict[str, Any]:
    return {"cookies": [COOKIE], "origins": [], **parts}


async def test_a_state_of_playwright_survives_a_round_trip(tmp_path: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_executable(None).path, args=["--no-sandbox"])
        context = await browser.new_context()
        await context.route("**/*", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        page = await context.new_page()
        await page.goto("http://localhost/")
        await page.evaluate(
            """() => new Promise((done, failed) => {
                const opening = indexedDB.open('shop', 3);
                opening.onupgradeneeded = () => opening.result.createObjectStore('cart', {keyPath: 'id'}).add({id: 1, item: 'tea'});
                opening.onsuccess = () => done(opening.result.close());
                opening.onerror = failed;
            })"""
        )
        original = await context.storage_state(indexed_db=True)
        kept: Any = decode(encode(original))
        assert kept == original
        assert len(kept["cookies"]) == 1

        again = await browser.new_context(storage_state=kept)
        assert await again.storage_state(indexed_db=True) == original
        await browser.close()


def test_texts_of_pages_are_kept_unchanged() -> None:
    item = {"name": "\ud800", "value": "NUL \0, a lone surrogate \udfff, a pair 😀, ü"}
    given = state(origins=[{"origin": "https://example.com", "localStorage": [item]}])
    assert decode(encode(given)) == given


def test_unknown_members_are_kept() -> None:
    given = state(later={"a": [1, None]}, cookies=[{**COOKIE, "later": True, "partitionKey": None}])
    assert decode(encode(given)) == given


def test_an_empty_state_is_valid() -> None:
    assert decode(encode(empty())) == {"cookies": [], "origins": []}


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({}, "", "neither cookies nor origins"),
        ({"cookie": [COOKIE]}, "", "neither cookies nor origins"),
        (state(cookies={"sid": "hunter2"}), "/cookies", "list"),
        (state(cookies=["hunter2"]), "/cookies/0", "dictionary"),
        (state(cookies=[{"name": "sid", "value": "hunter2"}]), "/cookies/0", "a domain and a path"),
        (state(cookies=[COOKIE, {**COOKIE, "value": 7}]), "/cookies/1/value", "str"),
        (state(cookies=[{**COOKIE, "sameSite": "hunter2"}]), "/cookies/0/sameSite", "'Strict', 'Lax' or 'None'"),
        (state(cookies=[{**COOKIE, "expires": "hunter2"}]), "/cookies/0/expires", "number"),
        (state(cookies=[{**COOKIE, "expires": float("nan")}]), "/cookies/0/expires", "finite"),
        (state(cookies=[{**COOKIE, "secure": "hunter2"}]), "/cookies/0/secure", "boolean"),
        (state(origins=[{"origin": "hunter2"}]), "/origins/0/origin", "pattern"),
        (
            state(origins=[{"origin": "https://a", "localStorage": {"token": "hunter2"}}]),
            "/origins/0/localStorage",
            "list",
        ),
        (state(origins=[{"origin": "https://a", "indexedDB": ["hunter2"]}]), "/origins/0/indexedDB/0", "dictionary"),
        (["hunter2"], "", "dictionary"),
    ],
)
def test_an_invalid_state_is_rejected_with_the_path_and_without_values(given: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidSession) as caught:
        encode(given)
    assert caught.value.problems[0].path == path
    assert message in caught.value.problems[0].message
    assert "hunter2" not in f"{caught.value} {caught.value.problems} {caught.value.__cause__}"


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [{1, 2}, float("inf"), b"hunter2", object(), nested(100_000)], ids=lambda _: "value")
def test_a_value_that_json_cannot_hold_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidSession, match="is not JSON") as caught:
        encode(state(later=value))
    assert "hunter2" not in str(caught.value)


def test_an_error_lists_at_most_20_problems() -> None:
    with pytest.raises(InvalidSession, match="and 999 more") as caught:
        encode(state(cookies=[1] * 1000))
    assert len(caught.value.problems) == 20


def test_the_size_limit_is_exact_to_the_byte() -> None:
    def of(size: int) -> dict[str, Any]:
        return state(origins=[{"origin": "https://a", "localStorage": [{"name": "n", "value": "v" * size}]}])

    max_value = MAX_BYTES - len(json.dumps(of(0), separators=(",", ":")))
    assert len(encode(of(max_value))) == MAX_BYTES
    with pytest.raises(SessionTooLarge, match=f"has {MAX_BYTES + 1} bytes, the limit is {MAX_BYTES}"):
        encode(of(max_value + 1))
