"""Reads data out of pages. The size limit is checked in the page, and nothing larger reaches this process."""

import json
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

from playwright.async_api import CDPSession, Page
from playwright.async_api import Error as PlaywrightError

CHUNK_CHARS = 1024 * 1024
"""What is transferred in one message. Messages are decoded on the event loop: this takes 5 to 20 ms."""

WORLD = "cplane"
"""Name of the JavaScript world that scripts run in. The page's own scripts cannot see or change anything of it."""

CONTEXT_GONE = "Cannot find context with specified id"
"""What Chromium says of an execution context whose document is no longer there."""

CALL = """(script, argument, maxBytes, chunk) => {
  const found = script(argument, maxBytes);
  if (typeof found !== "string") return { refused: found };
  const text = found.toWellFormed().replaceAll("\\0", "\\ufffd");
  const bytes = text.length > maxBytes ? text.length : new TextEncoder().encode(text).length;
  if (bytes > maxBytes) return { refused: { bytes } };
  if (text.length <= chunk) return { text };
  globalThis.__cplane_text = text;
  return { length: text.length };
}"""
"""Runs a script and returns its text if that is short, else keeps the text for `SLICE`. NUL and lone surrogates, which
JSON in Postgres cannot store, are replaced by U+FFFD.
"""

SLICE = """(start, chunk) => {
  const text = globalThis.__cplane_text;
  let end = Math.min(start + chunk, text.length);
  if (end < text.length && (text.charCodeAt(end) & 0xfc00) === 0xdc00) end += 1;
  if (end === text.length) delete globalThis.__cplane_text;
  return [text.slice(start, end), end];
}"""
"""Returns the part of the kept text from `start` on, and where it ends: never within a surrogate pair."""


class TextRefused(Exception):
    """The text is longer than allowed, or the script gave up before that; nothing was transferred.

    Args:
        found: what the script returned instead of a text, or `{"bytes": …}`.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__("the page has more text than allowed")
        self.found = found


async def read_text(page: Page, script: str, argument: object = None, *, max_bytes: int) -> str:
    """Run a script in a page and return the text that it returns, in chunks that do not block the event loop.

    In Chromium the script runs in an isolated world: it sees the document, but not what the page's scripts have made
    of `JSON`, `Array` or `document`. In other browsers it runs in the world of the page.

    Args:
        page: the page.
        script: a JavaScript function of the argument and `max_bytes` that returns a string, or an object if it gave up.
        argument: a JSON value for the script.
        max_bytes: maximum size of the text as UTF-8, bytes; counted in the page.

    Returns:
        The text, without NUL and lone surrogates.

    Raises:
        TextRefused: the text is longer than `max_bytes`, or the script returned an object.
        playwright.async_api.Error: the script raised an error, or the page navigated or closed meanwhile.
    """
    world = _world_of(page)
    found: dict[str, Any] = await world.run(_call(script), argument, max_bytes, CHUNK_CHARS)
    if "refused" in found:
        raise TextRefused(found["refused"])
    if "text" in found:
        return cast("str", found["text"])
    parts: list[str] = []
    start = 0
    while start < found["length"]:
        part, start = await world.run(SLICE, start, CHUNK_CHARS)
        parts.append(part)
    return "".join(parts)


async def read_json(page: Page, script: str, argument: object = None) -> Any:
    """Run a script in a page and return the JSON value that it returns, which has to be small.

    Args:
        page: the page.
        script: a JavaScript function of the argument that returns a JSON value of up to 64 KiB.
        argument: a JSON value for the script.

    Raises:
        TextRefused: the value is larger.
        playwright.async_api.Error: the script raised an error, or the page navigated or closed meanwhile.
    """
    text = await read_text(
        page, f"(argument) => JSON.stringify(({script})(argument) ?? null)", argument, max_bytes=65_536
    )
    return json.loads(text)


def _call(script: str) -> str:
    return f"(argument, maxBytes, chunk) => {{ const script = {script}\n; return ({CALL})(script, argument, maxBytes, chunk) }}"


class _World:
    """The world that scripts run in: one of our own in Chromium, in other browsers that of the page.

    Its DevTools session and its execution context are kept from one script to the next: a call takes one round trip.
    """

    def __init__(self, page: Page) -> None:
        browser = page.context.browser
        self._page = ref(page)
        self._is_chromium = browser is None or browser.browser_type.name == "chromium"
        self._session: CDPSession | None = None
        self._context_id: int | None = None

    async def run(self, function: str, *arguments: object) -> Any:
        """Run a JavaScript function with JSON arguments, and return its JSON result."""
        page = self._page()
        if page is None:
            raise PlaywrightError("the page is closed")
        if not self._is_chromium:
            return await page.evaluate(f"(given) => ({function})(...given)", list(arguments))
        if self._session is None:
            self._session = await page.context.new_cdp_session(page)
        if self._context_id is not None:
            try:
                return await self._call(self._session, self._context_id, function, arguments)
            except PlaywrightError as error:
                if CONTEXT_GONE not in error.message:
                    raise
        self._context_id = await _make_world(self._session)  # the page has navigated
        return await self._call(self._session, self._context_id, function, arguments)

    async def _call(self, session: CDPSession, context_id: int, function: str, arguments: tuple[object, ...]) -> Any:
        reply = await _send(
            session,
            "Runtime.callFunctionOn",
            functionDeclaration=function,
            executionContextId=context_id,
            arguments=[{"value": argument} for argument in arguments],
            returnByValue=True,
        )
        if (details := reply.get("exceptionDetails")) is not None:
            raise PlaywrightError(_message(details))
        return reply["result"].get("value")


_worlds: WeakKeyDictionary[Page, _World] = WeakKeyDictionary()


def _world_of(page: Page) -> _World:
    if (world := _worlds.get(page)) is None:
        world = _worlds[page] = _World(page)
    return world


async def _make_world(session: CDPSession) -> int:
    """Make the world of this name in the page's main frame, or find it; return its execution context."""
    target = await _send(session, "Target.getTargetInfo")
    frame = target["targetInfo"]["targetId"]  # a page's main frame has the id of the page
    world = await _send(session, "Page.createIsolatedWorld", frameId=frame, worldName=WORLD)
    return cast("int", world["executionContextId"])


async def _send(session: CDPSession, method: str, **params: object) -> dict[str, Any]:
    return cast("dict[str, Any]", await session.send(method, params))  # pyright: ignore[reportUnknownMemberType]


def _message(details: dict[str, Any]) -> str:
    thrown: dict[str, Any] = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details.get("text", "the script failed"))[:1000]
