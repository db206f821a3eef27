"""Credentials of a proxy or a server live as long as the page of the job that gave them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from cplane.browser import BrowserPool, PageOptions
from cplane.browser.pool.stock import WarmPages
from cplane.egress import EgressProxy, EgressRules
from cplane.egress.gate import Gate
from cplane.egress.upstream import Upstream
from tests.browser.pools import until

PROXY = {"server": "http://127.0.0.1:9", "username": "me", "password": "hunter2"}
LOGIN = {"username": "me", "password": "hunter2"}


class WatchedProxy(EgressProxy):
    """An egress proxy that knows which proxies of jobs its open gates connect to."""

    def __init__(self) -> None:
        super().__init__(EgressRules.read(["loopback"]))
        self.held: list[Upstream | None] = []
        self.opened = 0

    @asynccontextmanager
    async def gate(self, upstream: Upstream | None = None) -> AsyncGenerator[Gate]:
        async with super().gate(upstream) as gate:
            self.held.append(upstream)
            self.opened += upstream is not None
            try:
                yield gate
            finally:
                self.held.remove(upstream)


@pytest.mark.parametrize("isolation", ["fresh", "shared"])
async def test_no_gate_with_a_proxys_credentials_outlives_its_job(isolation: str) -> None:
    options = PageOptions.read({"proxy": PROXY, "isolation": isolation})
    async with WatchedProxy() as egress, BrowserPool(2, warm=2, egress=egress) as pool:
        await until(lambda: pool.stats().warm)
        for number in range(1, 5):
            async with pool.page(options) as page:
                assert await page.evaluate("6 * 7") == 42
                assert [each for each in egress.held if each] != []
            await until(lambda: not any(egress.held))
            assert egress.opened == number, "no page is opened ahead"
        await until(lambda: pool.stats().warm)
        assert not any(egress.held)


@pytest.mark.parametrize("given", [{"proxy": PROXY}, {"authenticate": LOGIN}], ids=["proxy", "authenticate"])
def test_options_with_credentials_are_not_kept(given: dict[str, object]) -> None:
    pages = WarmPages(2)
    pages.expect(PageOptions.read(given))
    assert pages.missing() == []
    pages.expect(PageOptions.read({"proxy": {"server": PROXY["server"]}}))
    assert len(pages.missing()) == 2
