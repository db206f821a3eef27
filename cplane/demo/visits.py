"""The jobs that the demo submits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cplane.demo.sample import catalogue_pages

CARD_SELECTORS = [
    {"selector": ".card .name"},
    {"selector": ".card .latin"},
    {"selector": ".card .price"},
    {"selector": ".card .tag"},
]
PDF_OPTIONS = {"format": "a4", "print_background": True, "prefer_css_page_size": True}
GREENHOUSE_OPTIONS = {"wait_for_selector": "#beds"}
"""A script draws the greenhouse page: wait for its table."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One job on one page. `page` is the display name of the page and the base of the file name."""

    job: str
    page: str
    url: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def args(self) -> dict[str, Any]:
        """The arguments of the job."""
        return {"url": self.url, **self.options}


def sample_visits(site_url: str) -> list[Visit]:
    """Return screenshots, PDFs, HTML, data and links of the sample site."""
    catalogue = [f"catalogue/{page}" for page in range(1, catalogue_pages() + 1)]
    return [
        *_each("screenshot", site_url, ["", "order", *catalogue], {"full_page": True}),
        *_each("screenshot", site_url, ["greenhouse"], {"full_page": True, **GREENHOUSE_OPTIONS}),
        *_each("screenshot", site_url, ["greenhouse"], {"selector": ".chart", **GREENHOUSE_OPTIONS}, suffix=" chart"),
        *_each("screenshot", site_url, [""], {"viewport": {"width": 390, "height": 844}}, suffix=" on a phone"),
        *_each("pdf", site_url, ["", "order", *catalogue], PDF_OPTIONS),
        *_each("pdf", site_url, ["greenhouse"], PDF_OPTIONS | GREENHOUSE_OPTIONS),
        *_each("scrape", site_url, catalogue, {"elements": CARD_SELECTORS}),
        *_each("scrape", site_url, ["greenhouse"], {"elements": [{"selector": "#beds td"}], **GREENHOUSE_OPTIONS}),
        *_each("content", site_url, ["", "order", "thanks?name=Ada&plant=Aloe"]),
        *_each("content", site_url, ["greenhouse"], GREENHOUSE_OPTIONS),
        *_each("links", site_url, ["", "order", "greenhouse", *catalogue]),
    ]


def visits_of(urls: Sequence[str]) -> list[Visit]:
    """Return a screenshot, a PDF and the links of each page.

    Args:
        urls: pages; https:// is assumed if the scheme is missing.
    """
    addresses = [url if "://" in url else f"https://{url}" for url in urls]
    return [
        Visit(job, _name(url), url, options)
        for url in addresses
        for job, options in (("screenshot", {"full_page": True}), ("pdf", {"print_background": True}), ("links", {}))
    ]


def _each(
    job: str, site_url: str, paths: Iterable[str], options: dict[str, Any] | None = None, *, suffix: str = ""
) -> list[Visit]:
    return [
        Visit(job, f"{path.partition('?')[0] or 'home'}{suffix}", f"{site_url}/{path}", options or {}) for path in paths
    ]


def _name(url: str) -> str:
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.netloc}{parts.path.rstrip('/')}{query}"
