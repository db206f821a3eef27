"""The jobs markdown, snapshot, check and download, and their failures on misbehaving pages."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cplane import Context
from cplane.browser import BrowserPool, PageOptions
from cplane.errors import InvalidArguments
from cplane.tasks import check, content, download, markdown, snapshot
from cplane.tasks.check import CheckFailed
from cplane.tasks.visit import (
    RETRY,
    CertificateInvalid,
    DownloadRefused,
    SelectorInvalid,
    TooLarge,
    TooManyRedirects,
    Unreachable,
    VisitFailed,
)
from tests.tasks.conftest import Site


async def test_markdown_has_headings_links_and_lists_but_no_scripts(pool: BrowserPool, ctx: Context, site: Any) -> None:
    async with pool.page() as page:
        whole = (await markdown(page, ctx, url=f"{site.url}/article")).markdown or ""
        main = (await markdown(page, ctx, url=f"{site.url}/article", main_content=True)).markdown or ""
    assert "Menu" in whole
    assert "Imprint" in whole
    assert "hidden" not in whole
    assert main == "# News\n\nSome **bold** [link](/x)\n\n- one\n- two\n"


async def test_a_snapshot_has_html_and_a_screenshot(pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path) -> None:
    async with pool.page() as page:
        result = await snapshot(page, ctx, url=f"{site.url}/tall")
    assert "height: 3000px" in (result.html or "")
    assert (tmp_path / "screenshot.png").stat().st_size == result.screenshot.size


async def test_a_page_larger_than_max_bytes_is_rejected(pool: BrowserPool, ctx: Context, site: Any) -> None:
    async with pool.page() as page:
        for run in (content, markdown, snapshot):
            with pytest.raises(TooLarge, match=r"has more than 1,000 bytes of HTML"):
                await run(page, ctx, url=f"{site.url}/big", max_bytes=1000)


async def test_a_page_that_meets_all_expectations_is_ok(pool: BrowserPool, ctx: Context, site: Any) -> None:
    async with pool.page() as page:
        result = await check(
            page,
            ctx,
            url=f"{site.url}/redirect",
            expect={
                "status": 200,
                "title": "Home",
                "url": "/$",
                "text": ["Hello you"],
                "no_text": ["Error"],
                "visible": [".box"],
                "count": [{"selector": "h1", "count": 1}],
                "max_load_ms": 300_000,
                "no_console_errors": True,
            },
        )
    assert result.ok, result.verdicts
    assert len(result.verdicts) == 9
    assert result.screenshot is None
    assert result.timings is not None
    assert result.timings.load_ms > 0


async def test_a_failed_expectation_reports_what_was_found(
    pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path
) -> None:
    async with pool.page() as page:
        result = await check(
            page,
            ctx,
            url=f"{site.url}/faulty",
            expect={"title": "Fine", "text": ["broken"], "no_console_errors": True, "no_failed_requests": True},
        )
        assert not result.ok
        found = {verdict.expectation: verdict for verdict in result.verdicts}
        assert [name for name, verdict in found.items() if verdict.ok] == ["text"]
        assert found["title"].found == "Faulty"
        assert "oh no" in found["no_console_errors"].found
        assert found["no_failed_requests"].found == f"404 {site.url}/gone.png"
        assert (tmp_path / "failed.png").exists()
        with pytest.raises(CheckFailed, match=r"^1 of 1 expectations failed; title: Faulty$"):
            await check(page, ctx, url=f"{site.url}/faulty", expect={"title": "Fine"}, fail=True)


async def test_a_check_of_an_unreachable_server_returns_not_ok(pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        result = await check(page, ctx, url="http://127.0.0.1:1/", expect={"status": 200})
    assert not result.ok
    assert [verdict.expectation for verdict in result.verdicts] == ["loads"]


async def test_a_malformed_selector_fails_a_check(pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        with pytest.raises(SelectorInvalid, match=r"^not a selector: 'a\[\['$"):
            await check(page, ctx, html="x", expect={"visible": ["a[["]})


async def test_a_download_is_stored_under_a_safe_name(
    pool: BrowserPool, ctx: Context, site: Any, tmp_path: Path
) -> None:
    options = PageOptions.read(download.page_options({"url": site.url}))
    async with pool.page(options) as page:
        result = await download(page, ctx, url=f"{site.url}/file")
    assert result.artifact.media_type == "text/csv"
    assert (tmp_path / result.artifact.name).read_bytes() == b"a,b\n" * 1000
    async with pool.page(options) as page:
        with pytest.raises(TooLarge, match="has 4,000 bytes, more than 10"):
            await download(page, ctx, url=f"{site.url}/file", max_bytes=10)
    async with pool.page(options) as page:
        with pytest.raises(VisitFailed, match="is a page, not a file"):
            await download(page, ctx, url=site.url)


async def test_load_failures_have_distinct_types(pool: BrowserPool, ctx: Context, site: Any) -> None:
    async with pool.page() as page:
        with pytest.raises(DownloadRefused, match="/file is a file to download"):
            await content(page, ctx, url=f"{site.url}/file")
        with pytest.raises(TooManyRedirects, match="/loop is in a redirect loop"):
            await content(page, ctx, url=f"{site.url}/loop")
        with pytest.raises(Unreachable, match="there is no such host"):
            await content(page, ctx, url="http://nowhere.invalid/")


async def test_an_untrusted_certificate_fails_with_its_reason(
    pool: BrowserPool, ctx: Context, site: Site, tmp_path: Path
) -> None:
    async with (
        await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=self_signed(tmp_path)) as server,
        pool.page() as page,
    ):
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(CertificateInvalid, match=f"{url} .*certificate"):
            await content(page, ctx, url=url)
    assert site.paths == []


async def test_100_mb_of_html_are_rejected_and_the_page_still_works(
    pool: BrowserPool, ctx: Context, site: Site
) -> None:
    async with pool.page() as page:
        with pytest.raises(TooLarge, match="has more than 16,777,216 bytes of HTML"):
            await content(page, ctx, url=f"{site.url}/huge")
        assert (await content(page, ctx, url=site.url)).title == "Home"


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1)
    ).sign(key, SHA256())
    file = folder / "server.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


async def test_dialogs_and_popups_do_not_block_a_job(pool: BrowserPool, ctx: Context, site: Any) -> None:
    async with pool.page() as page:
        assert (await content(page, ctx, url=f"{site.url}/dialogs")).title == "false null"
        assert (await content(page, ctx, url=site.url)).title == "Home"


def test_only_an_unreachable_server_is_retried() -> None:
    assert content.options.retry.allows(Unreachable("x"), 1)
    assert not RETRY.allows(DownloadRefused("x"), 1)


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ({"server": "ftp://a"}, "proxy/server: .*not a proxy"),
        ({"server": "http://me:hidden@a:1"}, "credentials go into username and password"),
        ({"server": "http://a:1", "password": "hidden"}, "needs a username"),
    ],
)
def test_an_invalid_proxy_is_rejected_without_showing_its_password(proxy: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArguments, match=message) as rejected:
        content.encode_json({"html": "x", "proxy": proxy})
    assert "hidden" not in str(rejected.value)


def test_a_check_without_expectations_is_rejected() -> None:
    with pytest.raises(InvalidArguments, match="expect is empty; it takes status, title"):
        check.encode_json({"html": "x", "expect": {}})
