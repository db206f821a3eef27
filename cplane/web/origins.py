"""What an API without keys serves: requests for its own names, and changes only from its own pages or from no page.

Without keys the browser of anybody on this machine is as good as a key. A page anywhere could send it here, by a name
that it points at this machine (DNS rebinding), or by a form and a `fetch` whose response it need not read (CSRF).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from cplane.web.paths import own_path
from cplane.web.problems import CROSS_ORIGIN, HOST_NOT_ALLOWED, RequestProblem, problem_response

ANY_HOST_PATHS = ("/livez", "/readyz")
"""What an orchestrator requests by the address of a container, and what tells a page nothing."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing. A page of another origin cannot read their responses: there is no CORS."""

PORT = re.compile(r":\d{1,5}$")


class SameOriginOnly:
    """Refuses requests for other hosts, and changes that a page of another origin asks for.

    Args:
        app: the app behind.
        allowed_hosts: names besides those of loopback: `name`, or `*.domain` for all names below a domain.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in allowed_hosts if not name.startswith("*."))
        self._domains = tuple(name[1:].lower() for name in allowed_hosts if name.startswith("*."))
        self._is_served = lru_cache(maxsize=128)(self._judge)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 403."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await problem_response(scope["path"], problem)(scope, receive, send)

    def _problem(self, scope: Scope) -> RequestProblem | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if not (hosts and all(map(self._is_served, hosts))) and own_path(scope) not in ANY_HOST_PATHS:
            shown = hosts[0].decode("latin-1") if hosts else "missing"
            return RequestProblem(
                HOST_NOT_ALLOWED,
                f"the Host header is {shown!r}, which is not a name of this server",
                hint="add it to CPLANE_ALLOWED_HOSTS, or set CPLANE_API_KEYS",
            )
        if scope["method"] in SAFE_METHODS or self._is_own_page(scope, hosts):
            return None
        return RequestProblem(
            CROSS_ORIGIN, "a page of another origin sent it", hint="set CPLANE_API_KEYS, and send one of them"
        )

    def _is_own_page(self, scope: Scope, hosts: list[bytes]) -> bool:
        """Return whether a page of this server sent a request, or no page at all.

        Browsers say so in Sec-Fetch-Site, those that do not (and plain HTTP beyond loopback) in Origin. Other clients
        send neither.
        """
        headers = dict(scope["headers"])
        if (site := headers.get(b"sec-fetch-site")) is not None:
            return site in {b"same-origin", b"none"}
        if (origin := headers.get(b"origin")) is None:
            return True
        _, _, netloc = origin.lower().partition(b"://")
        return netloc in [host.lower() for host in hosts] or self._is_named(host_of(netloc))

    def _judge(self, header: bytes) -> bool:
        host = host_of(header)
        return is_loopback(host) or self._is_named(host)

    def _is_named(self, host: str) -> bool:
        return host in self._names or host.endswith(self._domains)


def host_of(header: bytes) -> str:
    """Return the host in a Host header, without its port, in lower case and without the brackets of IPv6."""
    return PORT.sub("", header.decode("latin-1").strip().lower()).removeprefix("[").removesuffix("]")


def is_loopback(host: str) -> bool:
    """Return whether a host is a name or an address of loopback."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
