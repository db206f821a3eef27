"""Which jobs the demo submits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cplane.demo.sample import catalogue_pages

CARD = [
    {"selector": ".card .name"},
    {"selector": ".card .latin"},
    {"selector": ".card .price"},
    {"selector": ".card .tag"},
]
PRINTED = {"format": "a4", "print_background": True, "prefer_css_page_size": True}
DRAWN = {"wait_for_selector": "#beds"}
"""The greenhouse is drawn by a script: wait for its table."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One job on one page: `page` names the page for people, and the files that come back."""

    job: str
    page: str
    url: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def args(self) -> dict[str, Any]:
        """The job's arguments."""
        return {"url": self.url, **self.options}


def sample_visits(site_url: str) -> list[Visit]:
    """Pictures, papers, texts, data and links of the sample site."""
    catalogue = [f"catalogue/{page}" for page in range(1, catalogue_pages() + 1)]
    return [
        *_each("screenshot", site_url, ["", "order", *catalogue], {"full_page": True}),
        *_each("screenshot", site_url, ["greenhouse"], {"full_page": True, **DRAWN}),
        *_each("screenshot", site_url, ["greenhouse"], {"selector": ".chart", **DRAWN}, suffix=" chart"),
        *_each("screenshot", site_url, [""], {"viewport": {"width": 390, "height": 844}}, suffix=" on a phone"),
        *_each("pdf", site_url, ["", "order", *catalogue], PRINTED),
        *_each("pdf", site_url, ["greenhouse"], PRINTED | DRAWN),
        *_each("scrape", site_url, catalogue, {"elements": CARD}),
        *_each("scrape", site_url, ["greenhouse"], {"elements": [{"selector": "#beds td"}], **DRAWN}),
        *_each("content", site_url, ["", "order", "thanks?name=Ada&plant=Aloe"]),
        *_each("content", site_url, ["greenhouse"], DRAWN),
        *_each("links", site_url, ["", "order", "greenhouse", *catalogue]),
    ]


def visits_of(urls: Sequence[str]) -> list[Visit]:
    """A picture, a paper and the links of each page."""
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
