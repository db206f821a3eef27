"""Large and hostile pages: no more than the limit leaves them, and the event loop is not blocked."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cplane import Context
from cplane.browser import BrowserPool, PageOptions
from cplane.tasks import check, content, links, markdown, scrape, snapshot, steps
from cplane.tasks.content import Content
from cplane.tasks.scrape import ElementQuery
from cplane.tasks.visit import TooLarge, VisitFailed
from tests.pages import LINKS
from tests.tasks.ticking import Ticker

BLOCKED_S = 0.1
TEXT = "<title>Long</title><script>document.write('<p>x' + '\U0001f600'.repeat(%d))</script>"
HOSTILE = """<title>Hostile</title><a href="http://a.example/">link</a><script>
JSON.stringify = () => '"' + 'x'.repeat(1e7) + '"';
Array.prototype.toJSON = () => 'patched';
String.prototype.toWellFormed = String.prototype.slice = String.prototype.replaceAll = () => 'patched';
Array.from = Array.prototype.map = () => ['patched'];
document.querySelectorAll = () => [];
eval = () => () => 'patched';
</script>"""
FORM = "<form class=f><input name=attributes><input name=innerHTML><input name=getBoundingClientRect>text</form>"


@pytest.fixture
async def two_pages() -> Any:
    async with BrowserPool(2, warm=0) as pool:
        yield pool


async def neighbour(pool: BrowserPool, ctx: Context, stopped: asyncio.Event) -> int:
    """Run `content` on small pages until stopped; return how often."""
    number = 0
    while not stopped.is_set():
        async with pool.page() as page:
            found: Content = await content(page, ctx, html=f"<title>{number}</title>")
        assert found.title == str(number)
        number += 1
    return number


async def test_jobs_on_a_page_of_100_000_elements_do_not_hold_up_their_neighbours(
    two_pages: BrowserPool, ctx: Context
) -> None:
    html, stopped = LINKS % 50_000, asyncio.Event()
    async with two_pages.page() as page:
        await content(page, ctx, html="")  # what is loaded on first use is no matter here
    running = asyncio.create_task(neighbour(two_pages, ctx, stopped))
    async with Ticker() as ticker:
        async with two_pages.page() as page:
            with pytest.raises(TooLarge, match=r"^the links of about:blank have more than 786,432 bytes: "):
                await links(page, html=html)
        async with two_pages.page() as page:
            with pytest.raises(TooLarge, match=r"^the elements up to those of 'a' have more than 786,432 bytes: "):
                await scrape(page, html=html, elements=[{"selector": "title"}, {"selector": "a"}], limit=10_000)
        async with two_pages.page() as page:
            found = await links(page, html=LINKS % 5000)
        stopped.set()
        assert await running > 1
    assert len(found.links) == 5000
    assert found.links[-1].model_dump() == {"href": "http://a.example/4999", "text": "4999", "external": True}
    assert ticker.longest_s < BLOCKED_S


async def test_a_small_request_cannot_have_a_large_result(pool: BrowserPool) -> None:
    elements: list[ElementQuery] = [{"selector": "body"}] * 40
    async with pool.page() as page, Ticker() as ticker:
        with pytest.raises(TooLarge, match=r"^the elements up to those of 'body' have more than 786,432 bytes"):
            await scrape(page, html=TEXT % 200_000, elements=elements)
        with pytest.raises(
            TooLarge, match=r"bytes: [\d,]+ or more; narrow the selector, lower limit, or raise max_bytes"
        ):
            await scrape(page, html="<p>12345", elements=elements, max_bytes=1000)
    assert ticker.longest_s < BLOCKED_S


async def test_a_long_document_arrives_complete(pool: BrowserPool, ctx: Context, tmp_path: Path) -> None:
    async with pool.page() as page, Ticker() as ticker:
        await content(page, ctx, html=TEXT % 1_500_000)
        with pytest.raises(TooLarge, match=r"has more than 2,000,000 bytes of HTML: [\d,]+ or more \(see max_bytes\)$"):
            await content(page, ctx, html=TEXT % 1_000_000, max_bytes=2_000_000)
    document = (tmp_path / "content.html").read_text()
    assert document.endswith("<p>x" + "\U0001f600" * 1_500_000 + "</p></body></html>")
    assert ticker.longest_s < BLOCKED_S


async def test_markdown_counts_only_the_main_content_it_reads(pool: BrowserPool, ctx: Context) -> None:
    html = f"<main>short</main><p>{'x' * 5000}"
    async with pool.page() as page:
        result = await markdown(page, ctx, html=html, main_content=True, max_bytes=1000)
        assert result.markdown == "short\n"
        with pytest.raises(TooLarge):
            await markdown(page, ctx, html=html, max_bytes=1000)


async def test_a_page_cannot_change_what_jobs_read(pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        linked = await links(page, html=HOSTILE)
        scraped = await scrape(page, html=HOSTILE, elements=[{"selector": "a"}])
        document = await content(page, ctx, html=HOSTILE)
        checked = await check(page, ctx, html=HOSTILE, expect={"text": ["link"], "title": "Hostile"})
    assert [link.href for link in linked.links] == ["http://a.example/"]
    assert scraped.elements[0].results[0].attributes == {"href": "http://a.example/"}
    assert document.title == "Hostile"
    assert (document.html or "").startswith("<html><head><title>Hostile")
    assert checked.ok


async def test_fields_of_a_form_do_not_hide_its_properties(pool: BrowserPool) -> None:
    async with pool.page() as page:
        result = await scrape(page, html=FORM, elements=[{"selector": "form"}])
    form = result.elements[0].results[0]
    assert (form.text, form.attributes) == ("text", {"class": "f"})
    assert form.html.startswith("<input name=")


async def test_characters_that_json_cannot_store_are_replaced_in_every_result(pool: BrowserPool) -> None:
    html = "<a href='http://a.example/'></a><script>a = document.links[0]; a.textContent = a.title = 'a\\0\\ud800'</script>"
    async with pool.page() as page:
        linked = await links(page, html=html)
        scraped = await scrape(page, html=html, elements=[{"selector": "a"}])
    assert linked.links[0].text == "a\ufffd\ufffd"
    assert scraped.elements[0].results[0].attributes["title"] == "a\ufffd\ufffd"
    scrape.encode_result(scraped)


async def test_a_title_is_read_up_to_4096_characters(pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page, Ticker() as ticker:
        result = await snapshot(page, ctx, html="<script>document.title = 'x'.repeat(5e6)</script>")
    assert result.title == "x" * 4096
    assert ticker.longest_s < BLOCKED_S


async def test_steps_extract_a_limited_amount(pool: BrowserPool, ctx: Context) -> None:
    extract = {"action": "extract", "selector": "p", "name": "text", "what": "html"}
    given: dict[str, Any] = {"html": TEXT % 150_000, "steps": [extract, extract | {"name": "again"}]}
    async with pool.page(PageOptions()) as page:
        with pytest.raises(
            VisitFailed, match=r"the elements of the step extract 'p' have 300,001 bytes or more, .*786,432"
        ):
            await steps(page, ctx, **steps.decode(steps.encode_json(given)))
