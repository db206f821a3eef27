"""The way out for pages: names are resolved once, every address is judged, and what was judged is what is dialled.

A name that answers with a public address first and a private one later (DNS rebinding) gains nothing: nobody resolves it again.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cplane.egress.gate import Gate, HostBlocked
from cplane.egress.rules import Address, Blocked, EgressRules, bracketed, literal, plain
from cplane.egress.upstream import Upstream, UpstreamRefused, pass_on

RESOLVE_S = 5.0
CONNECT_S = 10.0
MOST_ADDRESSES = 4
"""Of one name so many are tried."""
RESOLVERS = 16
"""Names that are resolved at once: the system's resolver takes a thread for each."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a name; OSError when it has none."""
Connect = Callable[[Callable[[], asyncio.Protocol], str, int], Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]
"""Opens a connection to an address."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where to dial for a host: the addresses that were judged."""

    addresses: tuple[Address, ...]
    port: int


class EgressProxy:
    """Gates for browser contexts, with one set of rules and one resolver.

    Args:
        rules: what may be reached.
        max_bytes: what the pages of one gate may get; default: no limit.
        resolve: default: the system's resolver.
        connect: default: the loop's.
    """

    def __init__(
        self,
        rules: EgressRules,
        *,
        max_bytes: int | None = None,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        self.rules = rules
        self._max_bytes = max_bytes
        self._resolve = resolve or self._ask_system
        self._open_connection = connect or _connect
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="cplane resolver")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def gate(self, upstream: Upstream | None = None) -> AsyncGenerator[Gate]:
        """A gate, until the end of the block; `upstream` is a proxy of the job's own that stands behind it."""
        routes: dict[tuple[str, int], Route] = {}

        async def dial(
            host: str, port: int, protocol: Callable[[], asyncio.Protocol]
        ) -> tuple[asyncio.Transport, asyncio.Protocol]:
            route = routes.get((host, port))
            if route is None:
                route = routes[host, port] = await self._route(host, port, upstream)
            if upstream is None:
                return await self._dial(route, protocol)
            return await self._dial_through(upstream, route, host, port, protocol)

        gate = Gate(dial, self._max_bytes)
        await gate.open()
        try:
            yield gate
        finally:
            await gate.close()

    async def check(self, host: str, port: int) -> None:
        """Whether a host may be reached.

        Raises:
            HostBlocked: it may not.
            OSError: it has no address.
        """
        await self._route(host, port, None)

    async def _route(self, host: str, port: int, upstream: Upstream | None) -> Route:
        """Judge a host and, when a proxy is to reach it, the proxy too."""
        if upstream is not None:
            try:
                await self._judge(host, port)
            except OSError:  # only the proxy may know the name; what it reaches lies outside in any case
                if (blocked := self.rules.judge_name(host, port)) is not None:
                    raise HostBlocked(blocked) from None
            return Route(await self._judge(upstream.host, upstream.port, any_port=True), upstream.port)
        return Route(await self._judge(host, port), port)

    async def _judge(self, host: str, port: int, *, any_port: bool = False) -> tuple[Address, ...]:
        if (blocked := self.rules.judge_name(host, port)) is not None:
            raise HostBlocked(blocked)
        if not 0 < port < 65536:
            raise HostBlocked(Blocked(host, port, "there is no such port"))
        address = literal(host)
        addresses = (address,) if address is not None else tuple(await self._addresses(host, port))
        if (blocked := self.rules.judge(host, port, addresses, any_port=any_port)) is not None:
            raise HostBlocked(blocked)
        return tuple(dict.fromkeys(map(plain, addresses)))

    async def _addresses(self, host: str, port: int) -> Sequence[Address]:
        try:
            async with asyncio.timeout(RESOLVE_S):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise OSError(f"its name was not resolved within {RESOLVE_S:g} s") from None
        except (socket.gaierror, UnicodeError):
            raise OSError("there is no such name") from None
        if not addresses:
            raise OSError("there is no such name")
        return addresses

    async def _ask_system(self, host: str, port: int) -> Sequence[Address]:
        def ask() -> list[Address]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [address for *_, place in found if (address := literal(str(place[0]))) is not None]

        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    async def _dial(
        self, route: Route, protocol: Callable[[], asyncio.Protocol]
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect to the first address that answers."""
        trouble: OSError = OSError("it has no address")
        async with asyncio.timeout(CONNECT_S):
            for address in route.addresses[:MOST_ADDRESSES]:
                try:
                    async with asyncio.timeout(CONNECT_S / min(len(route.addresses), MOST_ADDRESSES)):
                        return await self._open_connection(protocol, str(address), route.port)
                except TimeoutError:
                    trouble = OSError(f"{address} did not answer")
                except OSError as error:
                    trouble = error
        raise trouble

    async def _dial_through(
        self, upstream: Upstream, route: Route, host: str, port: int, protocol: Callable[[], asyncio.Protocol]
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect by the job's own proxy."""
        async with asyncio.timeout(CONNECT_S):
            transport, waiting = await self._dial(route, upstream.protocol(host, port))
            try:
                await upstream.answered(waiting)
            except UpstreamRefused as error:
                transport.abort()
                raise OSError(f"the proxy {upstream.place} refused {bracketed(host)}:{port}: {error}") from None
            except BaseException:
                transport.abort()
                raise
            return pass_on(transport, waiting, protocol)


async def _connect(
    protocol: Callable[[], asyncio.Protocol], address: str, port: int
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    return await asyncio.get_running_loop().create_connection(protocol, address, port)
