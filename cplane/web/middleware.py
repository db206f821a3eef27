"""Pure ASGI middleware: a log line for each request with an answer to what nobody expected, and the check of keys."""

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
from cplane.web.problems import INTERNAL, UNAUTHORIZED, RequestProblem, answer

OPEN = ("/", "/livez", "/readyz", "/docs")
OPEN_BELOW = ("/static/", "/problems/")
"""What needs no key: it says nothing of jobs. Everything else does, also what does not exist."""

LINES_PER_S = 100
"""Under load not every request gets its line: the next one says how many went without."""

log = structlog.get_logger("cplane")


class RequestLog:
    """One line for each request: never a body, a query or a header. An unexpected error is logged and answered without details."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ration = LogRateLimiter(LINES_PER_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # the server cuts the connection: the client must not take half an answer for a whole one
            await answer(scope["path"], RequestProblem(INTERNAL, "an unexpected error; it is in the log"))(
                scope, receive, watched
            )
        finally:
            if self._ration.allows():
                self._tell(scope, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, status: int, took_s: float) -> None:
        fields: dict[str, object] = {"status": status or None, "took_ms": round(took_s * 1000, 1)}
        if untold := self._ration.untold():
            fields["and_others"] = untold
        log.debug("request", method=scope["method"], path=scope["path"], **fields)


class Authentication:
    """Asks for one of the keys. Every comparison takes the same time, and all are made, whatever was given."""

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr]) -> None:
        self._app = app
        self._keys = [sha256(key.get_secret_value().encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it may pass."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._known(given.strip()):
            await self._app(scope, receive, send)
            return
        challenge = 'Bearer realm="cplane"' + (', error="invalid_token"' if given else "")
        detail = "the key is not one of ours" if given else "there is no key"
        problem = RequestProblem(
            UNAUTHORIZED, detail, hint="send Authorization: Bearer KEY", headers={"www-authenticate": challenge}
        )
        await answer(scope["path"], problem)(scope, receive, send)

    def _known(self, given: str) -> bool:
        digest = sha256(given.encode("latin-1")).digest()  # the bytes as they came
        return any([hmac.compare_digest(digest, key) for key in self._keys])  # noqa: C419  any() on a generator stops at the first match


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)
