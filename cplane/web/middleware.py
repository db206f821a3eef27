"""Pure ASGI middleware: a log line for each request, a response to unexpected errors, and the check of API keys."""

import hmac
import time
from collections.abc import Sequence
from hashlib import sha256

import structlog
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cplane.logs import LogRateLimiter
from cplane.web.paths import own_path
from cplane.web.problems import INTERNAL_ERROR, UNAUTHORIZED, RequestProblem, problem_response

OPEN_PATHS = ("/", "/livez", "/readyz", "/docs")
OPEN_PREFIXES = ("/static/", "/problems/")
"""What needs no API key, because it says nothing of jobs. Every other path needs one, existing or not."""

MAX_LOG_LINES_PER_S = 100
"""Above this rate, requests are not logged; the next line has the number of those that were left out."""

log = structlog.get_logger("cplane")


class RequestLog:
    """Logs each request without body, query and headers; responds to unexpected errors without details."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._rate_limiter = LogRateLimiter(MAX_LOG_LINES_PER_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        except ClientDisconnect:
            pass  # there is no one left to respond to
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # the server cuts the connection: the client must not take half a response for a whole one
            problem = RequestProblem(INTERNAL_ERROR, "an unexpected error; the details are in the server's log")
            await problem_response(scope["path"], problem)(scope, receive, send_and_note_status)
        finally:
            if self._rate_limiter.allows():
                self._log_request(scope, status, time.perf_counter() - started)

    def _log_request(self, scope: Scope, status: int, took_s: float) -> None:
        fields: dict[str, object] = {"status": status or None, "took_ms": round(took_s * 1000, 1)}
        if left_out := self._rate_limiter.take_suppressed():
            fields["and_others"] = left_out
        log.debug("request_finished", method=scope["method"], path=scope["path"], **fields)


class Authentication:
    """Requires one of the API keys. Compares with all of them, each in constant time, whatever was given."""

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr]) -> None:
        self._app = app
        self._keys = [sha256(key.get_secret_value().encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it is authorized, or its path is open."""
        if scope["type"] != "http" or _is_open(own_path(scope)):
            await self._app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_known(given.strip()):
            await self._app(scope, receive, send)
            return
        challenge = 'Bearer realm="cplane"' + (', error="invalid_token"' if given else "")
        detail = "the API key is not one of CPLANE_API_KEYS" if given else "the API key is missing"
        problem = RequestProblem(
            UNAUTHORIZED, detail, hint="send Authorization: Bearer KEY", headers={"www-authenticate": challenge}
        )
        await problem_response(scope["path"], problem)(scope, receive, send)

    def _is_known(self, given: str) -> bool:
        digest = sha256(given.encode("latin-1")).digest()  # the bytes as they were sent
        return any([hmac.compare_digest(digest, key) for key in self._keys])  # noqa: C419  any() on a generator stops at the first match


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
