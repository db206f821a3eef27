"""The results of the built-in jobs."""

import struct
from pathlib import Path
from typing import Any

import pytest

from cplane import Context
from cplane.browser import BrowserPool, PageOptions
from cplane.errors import InvalidArguments
from cplane.tasks import content, links, pdf, scrape, screenshot
from cplane.tasks.visit import TooLarge, VisitFailed

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(SIGNATURE)
    return struct.unpack(">II", data[16:24])


async def test_screenshot_captures_the_viewport(pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path) -> None:
    async with pool.page() as page:
        shot = await screenshot(page, ctx, url=f"{site.url}/tall")
    data = (tmp_path / "screenshot.png").read_bytes()
    assert png_size(data) == (1280, 720)
    assert (shot.artifact.name, shot.artifact.media_type, shot.artifact.size) == (
        "screenshot.png",
        "image/png",
        len(data),
    )
    assert (shot.title, shot.status, shot.final_url) == ("Tall", 200, f"{site.url}/tall")


async def test_screenshot_captures_the_full_page_an_element_or_a_clip(
    pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path
) -> None:
    file = tmp_path / "screenshot.png"
    async with pool.page() as page:
        await screenshot(page, ctx, url=f"{site.url}/tall", full_page=True)
        assert png_size(file.read_bytes()) == (1280, 3000)
        await screenshot(page, ctx, url=site.url, selector=".box")
        assert png_size(file.read_bytes()) == (30, 40)
        await screenshot(page, ctx, url=site.url, clip={"x": 5, "y": 6, "width": 70, "height": 80})
        assert png_size(file.read_bytes()) == (70, 80)


async def test_jpeg_screenshot_is_smaller_at_lower_quality(
    pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path
) -> None:
    sizes: list[int] = []
    async with pool.page() as page:
        for quality in (90, 10):
            shot = await screenshot(page, ctx, url=site.url, type="jpeg", quality=quality)
            assert (tmp_path / "screenshot.jpeg").read_bytes().startswith(b"\xff\xd8\xff")
            assert shot.artifact.media_type == "image/jpeg"
            sizes.append(shot.artifact.size)
    assert sizes[1] < sizes[0]


async def test_screenshot_of_a_missing_element_names_its_selector(pool: BrowserPool, ctx: Context, site: Any) -> None:
    async with pool.page() as page:
        with pytest.raises(VisitFailed, match=f"^{site.url}/ has no element '#never'$"):
            await screenshot(page, ctx, url=site.url, selector="#never")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"full_page": True},
            "about:blank has 1,280 × 90,000 pixels; a screenshot can have 100,000,000: choose a smaller clip",
        ),
        ({"selector": "div"}, "the element 'div' of about:blank has 1,280 × 90,000 pixels"),
        ({"clip": {"x": 0, "y": 0, "width": 16000, "height": 16000}}, "the clip has 16,000 × 16,000 pixels"),
        (
            {"full_page": True, "device_scale_factor": 4},
            "1,280 × 90,000 pixels at 4 device pixels per CSS pixel",
        ),
    ],
)
async def test_a_screenshot_that_the_browser_would_leave_white_is_rejected(
    pool: BrowserPool, ctx: Context, given: dict[str, Any], message: str
) -> None:
    arguments = screenshot.decode(
        screenshot.encode_json({"html": "<body style='margin: 0'><div style='height: 90000px'>", **given})
    )
    async with pool.page(PageOptions.read(screenshot.page_options(arguments))) as page:
        with pytest.raises(TooLarge, match=message):
            await screenshot(page, ctx, **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quality": 50}, 'quality is for type "jpeg" only'),
        ({"type": "jpeg", "quality": 101}, "quality: .*less than or equal to 100"),
        ({"type": "jpeg", "omit_background": True}, "omit_background"),
        ({"type": "gif"}, "type: "),
        ({"full_page": True, "selector": "p"}, "give only one of full_page, selector and clip"),
        ({"clip": {"x": 0, "y": 0, "width": 0, "height": 1}}, "clip/width: .*greater than 0"),
        ({"clip": {"x": 0, "y": 0}}, "clip/width: Field required"),
    ],
)
def test_invalid_screenshot_arguments_are_rejected_at_submission(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArguments, match=message):
        screenshot.encode_json({"html": "x", **given})


async def test_pdf_has_the_requested_pages(pool: BrowserPool, ctx: Context, tmp_path: Path) -> None:
    html = "<title>Doc</title>" + '<p style="break-after: page">x</p>' * 2 + "<p>end</p>"
    async with pool.page() as page:
        printed = await pdf(page, ctx, html=html, format="a4", footer_template="<b class=pageNumber></b>")
        data = (tmp_path / "page.pdf").read_bytes()
        assert data.startswith(b"%PDF-")
        assert data.count(b"/Type /Page\n") == 3
        assert (printed.artifact.media_type, printed.title) == ("application/pdf", "Doc")
        await pdf(page, ctx, html=html, page_ranges="2-3", margin={"top": "1cm"}, landscape=True)
        assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") == 2
        with pytest.raises(VisitFailed, match="about:blank cannot be printed"):
            await pdf(page, ctx, html=html, page_ranges="9")


async def test_pdf_has_the_requested_size(pool: BrowserPool, ctx: Context, tmp_path: Path) -> None:
    async with pool.page() as page:
        await pdf(page, ctx, html="x", width="144px", height="2in")
    assert b"/MediaBox [0 0 108 144]" in (tmp_path / "page.pdf").read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "a4", "width": "1in", "height": "1in"}, "either format or width and height"),
        ({"width": "1in"}, "width and height must be given together"),
        ({"format": "A99"}, "format: "),
        ({"scale": 3}, "scale: "),
        ({"margin": {"top": "1 mile"}}, "margin/top: "),
        ({"page_ranges": "one"}, "page_ranges: "),
    ],
)
def test_invalid_pdf_arguments_are_rejected_at_submission(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArguments, match=message):
        pdf.encode_json({"html": "x", **given})


async def test_long_content_becomes_an_artifact(pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path) -> None:
    async with pool.page() as page:
        result = await content(page, ctx, url=f"{site.url}/big")
    assert result.html is None
    assert result.artifact is not None
    assert result.artifact.media_type == "text/html; charset=utf-8"
    assert "x" * 300_000 in (tmp_path / "content.html").read_text()


async def test_scrape_returns_text_html_attributes_and_position(pool: BrowserPool, site: Any) -> None:
    async with pool.page() as page:
        result = await scrape(
            page, url=site.url, elements=[{"selector": "h1"}, {"selector": ".box"}, {"selector": "#never"}]
        )
    title, box, never = result.elements
    assert [title.selector, box.selector, never.selector] == ["h1", ".box", "#never"]
    assert title.results[0].text == "Hello you"
    assert title.results[0].html == "Hello <b>you</b>"
    assert title.results[0].attributes == {"class": "title", "data-kind": "main"}
    assert box.results[0].box.model_dump() == {"x": 10, "y": 20, "width": 30, "height": 40}
    assert never.results == []
    assert (result.title, result.status) == ("Home", 200)


async def test_scrape_stops_at_its_limit_and_names_a_malformed_selector(pool: BrowserPool, site: Any) -> None:
    async with pool.page() as page:
        result = await scrape(page, url=site.url, elements=[{"selector": "a"}], limit=2)
        assert len(result.elements[0].results) == 2
        with pytest.raises(VisitFailed, match=r"^not a CSS selector: a\[$"):
            await scrape(page, url=site.url, elements=[{"selector": "a"}, {"selector": "a["}])
    with pytest.raises(InvalidArguments, match=r"elements: .*at least 1"):
        scrape.encode_json({"html": "x", "elements": []})


async def test_links_are_absolute_and_listed_once(pool: BrowserPool, site: Any) -> None:
    async with pool.page() as page:
        result = await links(page, url=site.url)
    assert [link.model_dump() for link in result.links] == [
        {"href": f"{site.url}/about", "text": "About", "external": False},
        {"href": "https://other.example/x?y=1#z", "text": "Other", "external": True},
        {"href": f"{site.url}/hidden", "text": "Hidden", "external": False},
    ]


async def test_hidden_and_external_links_can_be_omitted(pool: BrowserPool, site: Any) -> None:
    async with pool.page() as page:
        result = await links(page, url=site.url, visible_links_only=True, exclude_external_links=True)
    assert [link.href for link in result.links] == [f"{site.url}/about"]
