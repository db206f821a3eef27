"""DNS lookups of one gate: once for all callers, a few concurrently, with an expiring cache."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from cplane.egress import EgressProxy, EgressRules, lookups
from cplane.egress.lookups import MAX_CONCURRENT, Lookups
from cplane.egress.rules import Address

PUBLIC: Address = ip_address("1.1.1.1")


class Resolver:
    """A resolver that returns when the test lets it."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.changed = asyncio.Condition()
        self.released = asyncio.Event()

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        async with self.changed:
            self.requests.append(host)
            self.changed.notify_all()
        await self.released.wait()
        return [PUBLIC]

    async def until_requested(self, count: int) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.requests) >= count)


async def test_a_name_is_looked_up_once_for_concurrent_callers_and_cached_for_later_ones() -> None:
    resolver = Resolver()
    dns = Lookups(resolver.resolve)
    calls = [asyncio.create_task(dns.addresses("site.example", 443)) for _ in range(20)]
    await resolver.until_requested(1)
    resolver.released.set()
    assert await asyncio.gather(*calls) == [(PUBLIC,)] * 20
    assert await dns.addresses("site.example", 80) == (PUBLIC,)
    assert resolver.requests == ["site.example"]
    await dns.close()


async def test_a_cached_result_expires_and_the_next_result_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "CACHE_TTL_S", 0)
    results = [ip_address("1.1.1.1"), ip_address("10.0.0.1")]

    async def resolve(host: str, port: int) -> Sequence[Address]:
        return [results.pop(0)]

    dns = Lookups(resolve)
    proxy = EgressProxy(EgressRules(), resolve=resolve)
    found = await dns.addresses("rebind.example", 443)
    assert proxy.rules.judge("rebind.example", 443, found) is None
    found = await dns.addresses("rebind.example", 443)
    assert proxy.rules.judge("rebind.example", 443, found) is not None
    await dns.close()


async def test_names_that_never_resolve_leave_capacity_for_other_gates() -> None:
    resolver = Resolver()
    hostile = Lookups(resolver.resolve)
    calls = [asyncio.create_task(hostile.addresses(f"{n}.slow.example", 443)) for n in range(100)]
    await resolver.until_requested(MAX_CONCURRENT)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(resolver.requests) == MAX_CONCURRENT
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert len(resolver.requests) == MAX_CONCURRENT  # a lookup without a caller continues: its thread cannot be stopped
    await hostile.close()


async def test_too_many_lookups_in_flight_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MAX_LOOKUPS", 3)
    resolver = Resolver()
    dns = Lookups(resolver.resolve)
    calls = [asyncio.create_task(dns.addresses(f"{n}.example", 443)) for n in range(3)]
    await resolver.until_requested(3)
    with pytest.raises(OSError, match="too many names at once"):
        await dns.addresses("one.more.example", 443)
    resolver.released.set()
    await asyncio.gather(*calls)
    assert await dns.addresses("one.more.example", 443) == (PUBLIC,)
    await dns.close()


async def test_the_cache_is_bounded_and_evicts_the_oldest_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MAX_CACHED", 2)
    resolver = Resolver()
    resolver.released.set()
    dns = Lookups(resolver.resolve)
    for host in ("a.example", "b.example", "c.example", "c.example", "b.example", "a.example"):
        await dns.addresses(host, 443)
    assert resolver.requests == ["a.example", "b.example", "c.example", "a.example"]
    await dns.close()


async def test_a_lookup_has_a_deadline_and_closing_cancels_lookups_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "RESOLVE_TIMEOUT_S", 0.05)
    resolver = Resolver()
    dns = Lookups(resolver.resolve)
    with pytest.raises(OSError, match=r"its name was not resolved within 0\.05 s"):
        await dns.addresses("slow.example", 443)
    await dns.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "look up a name for a page"]


async def test_a_name_without_an_address_is_not_cached() -> None:
    requests: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[Address]:
        requests.append(host)
        return []

    dns = Lookups(resolve)
    for _ in range(2):
        with pytest.raises(OSError, match="there is no such name"):
            await dns.addresses("none.example", 443)
    assert len(requests) == 2
    await dns.close()


async def test_the_system_resolver_works_and_a_closed_proxy_raises() -> None:
    async with EgressProxy(EgressRules.read(["loopback"])) as proxy:
        await proxy.check("localhost", 8000)
    with pytest.raises(OSError, match="the egress proxy is closed"):
        await proxy.check("localhost", 8000)
