"""The visit that all built-in jobs share, tested with `content`."""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

import pytest
from playwright.async_api import Error as PlaywrightError

from cplane import Context
from cplane.browser import BrowserPool, PageOptions
from cplane.errors import InvalidArguments
from cplane.tasks import content
from cplane.tasks.content import Content
from cplane.tasks.visit import CertificateInvalid, TooManyRedirects, Unreachable, VisitFailed, load_failure


class Run(Protocol):
    """Runs `content` as a worker does, with page options and arguments from stored JSON."""

    async def __call__(self, **arguments: Any) -> Content: ...


@pytest.fixture
def run(pool: BrowserPool, ctx: Context) -> Run:
    async def run(**given: Any) -> Content:
        arguments = content.decode(content.encode_json(given))
        async with pool.page(PageOptions.read(content.page_options(arguments))) as page:
            return await content(page, ctx, **arguments)

    return run


def text(result: Content) -> str:
    assert result.html is not None
    return re.sub(r"<[^>]*>", "", result.html)


async def test_the_html_is_read_after_the_scripts_ran(run: Run, site: Any) -> None:
    result = await run(url=f"{site.url}/scripted")
    assert (result.status, result.title, result.final_url) == (200, "After", f"{site.url}/scripted")
    assert "<p>42</p>" in (result.html or "")


async def test_html_needs_no_server(run: Run) -> None:
    result = await run(html="<title>Mine</title><p>text</p>")
    assert (result.status, result.title, result.final_url) == (None, "Mine", "about:blank")
    assert "<p>text</p>" in (result.html or "")


async def test_redirects_are_followed(run: Run, site: Any) -> None:
    result = await run(url=f"{site.url}/redirect")
    assert (result.status, result.final_url) == (200, f"{site.url}/")


async def test_headers_cookies_and_user_agent_are_sent_to_the_server(run: Run, site: Any) -> None:
    result = await run(
        url=f"{site.url}/echo",
        extra_http_headers={"X-Tenant": "blue"},
        cookies=[{"name": "session", "value": "abc", "http_only": True, "same_site": "Lax"}],
        user_agent="reader/1.0",
        locale="de-DE",
    )
    headers = json.loads(text(result))
    assert headers["x-tenant"] == "blue"
    assert headers["cookie"] == "session=abc"
    assert headers["user-agent"] == "reader/1.0"
    assert headers["accept-language"].startswith("de-DE")


async def test_scripts_see_locale_timezone_user_agent_viewport_and_media(run: Run) -> None:
    seen = (
        "[navigator.language, Intl.DateTimeFormat().resolvedOptions().timeZone, navigator.userAgent, innerWidth,"
        " matchMedia('(prefers-color-scheme: dark)').matches, matchMedia('print').matches]"
    )
    result = await run(
        html="<p></p>",
        locale="fr-FR",
        timezone="Asia/Tokyo",
        user_agent="reader/1.0",
        viewport={"width": 500, "height": 400},
        emulate_media={"media": "print", "color_scheme": "dark"},
        add_script_tag=[{"content": f"document.querySelector('p').textContent = JSON.stringify({seen})"}],
    )
    assert json.loads(re.findall(r"<p>(.*)</p>", result.html or "")[0]) == [
        "fr-FR",
        "Asia/Tokyo",
        "reader/1.0",
        500,
        True,
        True,
    ]


async def test_scripts_can_be_turned_off(run: Run, site: Any) -> None:
    result = await run(url=f"{site.url}/scripted", java_script_enabled=False)
    assert result.title == "Before"
    assert "42" not in text(result)


async def test_credentials_are_sent_to_the_server_of_the_url(run: Run, site: Any) -> None:
    result = await run(url=f"{site.url}/private", authenticate={"username": "me", "password": "secret"})
    assert (result.status, result.title) == (200, "Private")
    denied = await run(url=f"{site.url}/private", authenticate={"username": "me", "password": "wrong"})
    assert denied.status == 401


def test_credentials_are_bound_to_the_origin_of_the_url() -> None:
    options = content.page_options(
        {"url": "https://a.example:8443/x?y", "authenticate": {"username": "a", "password": "b"}}
    )
    assert options["authenticate"] == {"username": "a", "password": "b", "origin": "https://a.example:8443"}


async def test_rejected_resource_types_are_not_requested(run: Run, site: Any) -> None:
    await run(url=f"{site.url}/assets", reject_resource_types=["image"])
    assert sorted(site.paths) == ["/assets", "/style.css"]


async def test_rejected_patterns_are_not_requested(run: Run, site: Any) -> None:
    await run(url=f"{site.url}/assets", reject_request_pattern=[r"\.css$", "^never$"])
    assert "/style.css" not in site.paths
    assert "/image.png" in site.paths


async def test_styles_are_added(run: Run) -> None:
    result = await run(
        html="<p></p>",
        add_style_tag=[{"content": "p { color: rgb(4, 5, 6) }"}],
        add_script_tag=[{"content": "1"}],
        wait_for_timeout=1,
    )
    assert "rgb(4, 5, 6)" in (result.html or "")


async def test_an_error_page_is_a_result_without_fail_on_http_status(run: Run, site: Any) -> None:
    result = await run(url=f"{site.url}/missing")
    assert (result.status, result.title) == (404, "Nothing")
    with pytest.raises(VisitFailed, match=f"^{site.url}/missing returned HTTP status 404$"):
        await run(url=f"{site.url}/missing", fail_on_http_status=True)


async def test_an_element_that_appears_later_is_waited_for(run: Run) -> None:
    script = (
        "setTimeout(() => document.body.append(Object.assign(document.createElement('i'), {textContent: 'late'})), 50)"
    )
    result = await run(html=f"<script>{script}</script>", wait_for_selector="i")
    assert "<i>late</i>" in (result.html or "")


async def test_an_element_that_does_not_appear_is_named_in_the_error(run: Run) -> None:
    with pytest.raises(VisitFailed, match=r"^no element '#never' became attached within 0.1 s$"):
        await run(html="", wait_for_selector={"selector": "#never", "state": "attached", "timeout": 100})


async def test_an_unreachable_server_is_named_in_the_error(run: Run) -> None:
    with pytest.raises(VisitFailed, match=r"^http://127.0.0.1:9/ did not load: .*net::ERR_"):
        await run(url="http://127.0.0.1:9/")


async def test_a_page_that_does_not_load_in_time_is_named_in_the_error(run: Run) -> None:
    with pytest.raises(VisitFailed, match=r"^the html did not reach 'networkidle' within 0\.05 s$"):
        await run(html="<p>x", goto_options={"wait_until": "networkidle", "timeout": 50})


async def test_characters_that_json_cannot_store_are_replaced(run: Run) -> None:
    result = await run(
        html="<p></p>", add_script_tag=[{"content": "document.querySelector('p').textContent = 'a\\0b\\ud800c'"}]
    )
    assert "<p>a\ufffdb\ufffdc</p>" in (result.html or "")
    content.encode_result(result)


REJECTED: list[tuple[Mapping[str, Any], str]] = [
    ({}, "give url or html"),
    ({"url": "http://a.example", "html": "x"}, "give either url or html, not both"),
    ({"url": "ftp://a.example"}, "url: URL scheme should be 'http' or 'https'"),
    ({"url": "javascript:alert(1)"}, "url: URL scheme should be 'http' or 'https'"),
    ({"url": "file:///etc/passwd"}, "url: URL scheme should be 'http' or 'https'"),
    ({"url": "nonsense"}, "url: .*valid URL"),
    ({"html": "x", "authenticate": {"username": "a", "password": "b"}}, "authenticate requires url"),
    ({"html": "x", "cookies": [{"name": "c", "value": "v"}]}, "with html, cookie 'c' needs a url or a domain"),
    ({"html": "x", "timezone": "Mars/Olympus"}, "timezone: .*not a timezone"),
    ({"html": "x", "viewport": {"width": 0, "height": 1}}, "viewport/width: .*greater than or equal to 1"),
    (
        {"html": "x", "viewport": {"width": 16384, "height": 16384}},
        "a viewport of 16,384 × 16,384 pixels is larger than 100,000,000 device pixels: lower viewport or device_scale",
    ),
    (
        {"html": "x", "viewport": {"width": 5000, "height": 5000}, "device_scale_factor": 3},
        "a viewport of 5,000 × 5,000 pixels at 3 device pixels per CSS pixel is larger than 100,000,000",
    ),
    ({"html": "x", "goto_options": {"waitUntil": "load"}}, "goto_options/waitUntil: Extra inputs"),
    ({"html": "x", "goto_options": {"timeout": 9e9}}, "goto_options/timeout: "),
    ({"html": "x", "reject_resource_types": ["pictures"]}, "reject_resource_types/0: "),
    ({"html": "x", "reject_request_pattern": ["("]}, "reject_request_pattern/0: .*not a regular expression"),
    ({"html": "x", "add_script_tag": [{}]}, "add_script_tag: each takes either url or content"),
    ({"html": "x", "colour": "red"}, "colour: Extra inputs"),
]


@pytest.mark.parametrize(("arguments", "message"), REJECTED)
def test_invalid_arguments_are_rejected_at_submission(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InvalidArguments, match=message):
        content.encode_json(dict(arguments))


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        ("NS_ERROR_UNKNOWN_HOST", Unreachable, "there is no such host: NS_ERROR_UNKNOWN_HOST"),
        ("NS_ERROR_REDIRECT_LOOP", TooManyRedirects, "is in a redirect loop"),
        (
            "NS_ERROR_GENERATE_FAILURE(NS_ERROR_MODULE_SECURITY, MOZILLA_PKIX_ERROR_SELF_SIGNED_CERT)",
            CertificateInvalid,
            "MOZILLA_PKIX_ERROR_SELF_SIGNED_CERT",
        ),
        ("NS_ERROR_WONT_HANDLE_CONTENT", VisitFailed, "unknown error (NS_ERROR_WONT_HANDLE_CONTENT)"),
    ],
)
def test_error_codes_of_firefox_are_translated_like_those_of_chromium(
    code: str, kind: type[VisitFailed], sentence: str
) -> None:
    text = f"Page.goto: Protocol error (browsingContext.navigate): unknown error\nMessage: Error: {code} at http://x/"
    failed = load_failure("http://x/", PlaywrightError(text))
    assert type(failed) is kind
    assert sentence in str(failed)
