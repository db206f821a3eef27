"""The egress proxy: it resolves a name once, judges every address, and dials only addresses that it has judged.

A name that resolves to a public address first and to a private one later (DNS rebinding) gains nothing: it is not
resolved again between judging and dialling, and a later result is judged like the first.
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
from cplane.egress.upstream import Upstream, UpstreamRefused, hand_over

CONNECT_TIMEOUT_S = 10.0
MAX_ADDRESSES = 4
"""Addresses of one name that are tried."""
RESOLVER_THREADS = 64
"""Names that are resolved concurrently, for all gates: the system's resolver blocks a thread for each."""

Connect = Callable[[Callable[[], asyncio.Protocol], str, int], Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]
"""Opens a connection to an address and port."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where to dial for a host: addresses that were judged."""

    addresses: tuple[Address, ...]
    port: int


class EgressProxy:
    """Opens gates for browser contexts, with one set of rules and one resolver.

    Args:
        rules: which hosts pages can reach.
        max_bytes: bytes that the pages of one gate may receive; default: no limit.
        resolve: resolves names; default: the system's resolver.
        connect: opens connections; default: the event loop's `create_connection`.

    Example:
        ```python
        import asyncio

        from cplane import BrowserPool
        from cplane.egress import EgressProxy, EgressRules
        from cplane.errors import EgressBlocked


        async def main() -> None:
            rules = EgressRules.read(allow=["intranet.example:8080"], deny=["*.ads.example"])
            async with EgressProxy(rules) as egress, BrowserPool(max_pages=1, egress=egress) as pool:
                try:
                    async with pool.page() as page:
                        await page.goto("http://127.0.0.1/")
                except EgressBlocked as error:
                    print(error)  # 127.0.0.1:80 was not reached: 127.0.0.1 is a loopback address, …


        asyncio.run(main())
        ```
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
        self._resolve = resolve or self._resolve_by_system
        self._open_connection = connect or _connect
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="cplane resolver")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def gate(self, upstream: Upstream | None = None) -> AsyncGenerator[Gate]:
        """Open a gate for the length of a block.

        Args:
            upstream: a proxy of the job, through which the gate connects to hosts.
        """
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
        """Check whether pages can reach a host; return if they can.

        Raises:
            HostBlocked: the rules do not allow it.
            OSError: it has no address.
        """
        lookups = Lookups(self._resolve)
        try:
            await self._route(lookups, host, port, None)
        finally:
            await lookups.close()

    async def _route(self, lookups: Lookups, host: str, port: int, upstream: Upstream | None) -> Route:
        """Judge a host, and the job's proxy if there is one."""
        if upstream is None:
            return Route(await self._judge(lookups, host, port), port)
        try:
            await self._judge(lookups, host, port)
        except OSError:  # perhaps only the proxy can resolve the name, and it is outside our network
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

    async def _resolve_by_system(self, host: str, port: int) -> Sequence[Address]:
        def resolve() -> list[Address]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [address for *_, sockaddr in found if (address := literal(str(sockaddr[0]))) is not None]

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, resolve)
        except RuntimeError:  # the executor was shut down
            raise OSError("the egress proxy is closed") from None

    async def _dial(
        self, route: Route, protocol: Callable[[], asyncio.Protocol]
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect to the first address that responds."""
        last_error: OSError = OSError("it has no address")
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            for address in route.addresses[:MAX_ADDRESSES]:
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S / min(len(route.addresses), MAX_ADDRESSES)):
                        return await self._open_connection(protocol, str(address), route.port)
                except TimeoutError:
                    last_error = OSError(f"{address} did not respond")
                except OSError as error:
                    last_error = error
        raise last_error

    async def _dial_through(
        self, upstream: Upstream, route: Route, host: str, port: int, protocol: Callable[[], asyncio.Protocol]
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect through the job's proxy."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, handshake = await self._dial(route, upstream.protocol(host, port))
            try:
                await upstream.wait_connected(handshake)
            except UpstreamRefused as error:
                transport.abort()
                raise OSError(f"the proxy {upstream.address} refused {bracketed(host)}:{port}: {error}") from None
            except BaseException:
                transport.abort()
                raise
            return hand_over(transport, handshake, protocol)


async def _connect(
    protocol: Callable[[], asyncio.Protocol], address: str, port: int
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    return await asyncio.get_running_loop().create_connection(protocol, address, port)
