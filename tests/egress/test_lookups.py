"""What one gate looks up: once for all who wait, a few at a time, and not for ever."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from cplane.egress import EgressProxy, EgressRules, lookups
from cplane.egress.lookups import AT_ONCE, Lookups
from cplane.egress.rules import Address

PUBLIC: Address = ip_address("1.1.1.1")


class Book:
    """A resolver that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.more = asyncio.Condition()
        self.go = asyncio.Event()

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        async with self.more:
            self.asked.append(host)
            self.more.notify_all()
        await self.go.wait()
        return [PUBLIC]

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(10), self.more:
            await self.more.wait_for(lambda: len(self.asked) >= count)


async def test_a_name_is_looked_up_once_for_all_who_wait_and_for_those_who_come_soon_after() -> None:
    book = Book()
    looked = Lookups(book.resolve)
    asking = [asyncio.create_task(looked.addresses("site.example", 443)) for _ in range(20)]
    await book.until_asked(1)
    book.go.set()
    assert await asyncio.gather(*asking) == [(PUBLIC,)] * 20
    assert await looked.addresses("site.example", 80) == (PUBLIC,)
    assert book.asked == ["site.example"]
    await looked.close()


async def test_an_answer_grows_old_and_the_next_one_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "KEPT_S", 0)
    answers = [ip_address("1.1.1.1"), ip_address("10.0.0.1")]

    async def resolve(host: str, port: int) -> Sequence[Address]:
        return [answers.pop(0)]

    looked = Lookups(resolve)
    proxy = EgressProxy(EgressRules(), resolve=resolve)
    found = await looked.addresses("rebind.example", 443)
    assert proxy.rules.judge("rebind.example", 443, found) is None
    found = await looked.addresses("rebind.example", 443)
    assert proxy.rules.judge("rebind.example", 443, found) is not None
    await looked.close()


async def test_names_that_nobody_answers_leave_room_for_other_gates() -> None:
    book = Book()
    hostile = Lookups(book.resolve)
    asking = [asyncio.create_task(hostile.addresses(f"{n}.slow.example", 443)) for n in range(100)]
    await book.until_asked(AT_ONCE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(book.asked) == AT_ONCE
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert len(book.asked) == AT_ONCE  # a lookup goes on although nobody waits: its thread cannot be stopped
    await hostile.close()


async def test_more_names_than_a_page_asks_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MOST_WAITING", 3)
    book = Book()
    looked = Lookups(book.resolve)
    asking = [asyncio.create_task(looked.addresses(f"{n}.example", 443)) for n in range(3)]
    await book.until_asked(3)
    with pytest.raises(OSError, match="too many names at once"):
        await looked.addresses("one.more.example", 443)
    book.go.set()
    await asyncio.gather(*asking)
    assert await looked.addresses("one.more.example", 443) == (PUBLIC,)
    await looked.close()


async def test_only_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MOST_KEPT", 2)
    book = Book()
    book.go.set()
    looked = Lookups(book.resolve)
    for host in ("a.example", "b.example", "c.example", "c.example", "b.example", "a.example"):
        await looked.addresses(host, 443)
    assert book.asked == ["a.example", "b.example", "c.example", "a.example"]
    await looked.close()


async def test_a_lookup_has_a_deadline_and_closing_ends_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "RESOLVE_S", 0.05)
    book = Book()
    looked = Lookups(book.resolve)
    with pytest.raises(OSError, match=r"its name was not resolved within 0\.05 s"):
        await looked.addresses("slow.example", 443)
    await looked.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "look up a name for a page"]


async def test_a_name_without_an_address_is_asked_for_again() -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[Address]:
        asked.append(host)
        return []

    looked = Lookups(resolve)
    for _ in range(2):
        with pytest.raises(OSError, match="there is no such name"):
            await looked.addresses("none.example", 443)
    assert len(asked) == 2
    await looked.close()


async def test_the_systems_resolver_answers_and_a_closed_proxy_says_so() -> None:
    async with EgressProxy(EgressRules.read(["loopback"])) as proxy:
        await proxy.check("localhost", 8000)
    with pytest.raises(OSError, match="the egress proxy is closed"):
        await proxy.check("localhost", 8000)
