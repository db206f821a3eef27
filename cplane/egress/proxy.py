"""The way out for pages: names are resolved once, every address is judged, and what was judged is what is dialled.

A name that answers with a public address first and a private one later (DNS rebinding) gains nothing: between judging and dialling nobody
resolves it again, and a later answer is judged like the first.
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
from cplane.egress.lookups import Lookups, Resolve
from cplane.egress.rules import Address, Blocked, EgressRules, bracketed, literal, plain
from cplane.egress.upstream import Upstream, UpstreamRefused, pass_on

CONNECT_S = 10.0
MOST_ADDRESSES = 4
"""Of one name so many are tried."""
RESOLVERS = 64
"""Names that are resolved at once, for all gates: the system's resolver takes a thread for each."""

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
        lookups = Lookups(self._resolve)

        async def dial(
            host: str, port: int, protocol: Callable[[], asyncio.Protocol]
        ) -> tuple[asyncio.Transport, asyncio.Protocol]:
            route = await self._route(lookups, host, port, upstream)
            if upstream is None:
                return await self._dial(route, protocol)
            return await self._dial_through(upstream, route, host, port, protocol)

        gate = Gate(dial, self._max_bytes)
        await gate.open()
        try:
            yield gate
        finally:
            await gate.close()
            await lookups.close()

    async def check(self, host: str, port: int) -> None:
        """Whether a host may be reached.

        Raises:
            HostBlocked: it may not.
            OSError: it has no address.
        """
        lookups = Lookups(self._resolve)
        try:
            await self._route(lookups, host, port, None)
        finally:
            await lookups.close()

    async def _route(self, lookups: Lookups, host: str, port: int, upstream: Upstream | None) -> Route:
        """Judge a host and, when a proxy is to reach it, the proxy too."""
        if upstream is None:
            return Route(await self._judge(lookups, host, port), port)
        try:
            await self._judge(lookups, host, port)
        except OSError:  # only the proxy may know the name; what it reaches lies outside in any case
            if (blocked := self.rules.judge_unresolved(host, port)) is not None:
                raise HostBlocked(blocked) from None
        return Route(await self._judge(lookups, upstream.host, upstream.port, any_port=True), upstream.port)

    async def _judge(self, lookups: Lookups, host: str, port: int, *, any_port: bool = False) -> tuple[Address, ...]:
        if (blocked := self.rules.judge_name(host, port)) is not None:
            raise HostBlocked(blocked)
        if not 0 < port < 65536:
            raise HostBlocked(Blocked(host, port, "there is no such port"))
        address = literal(host)
        addresses = (address,) if address is not None else await lookups.addresses(host, port)
        if (blocked := self.rules.judge(host, port, addresses, any_port=any_port)) is not None:
            raise HostBlocked(blocked)
        return tuple(dict.fromkeys(map(plain, addresses)))

    async def _ask_system(self, host: str, port: int) -> Sequence[Address]:
        def ask() -> list[Address]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [address for *_, place in found if (address := literal(str(place[0]))) is not None]

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except RuntimeError:  # a shut executor takes no more
            raise OSError("the egress proxy is closed") from None

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
