"""Holds a page with a browser session to what the session may be used for: its hosts, and the options it allows."""

from typing import TYPE_CHECKING

from cplane.browser import PageOptions
from cplane.sessions.binding import host_in
from cplane.sessions.store import SessionHold

if TYPE_CHECKING:
    from playwright.async_api import Frame, Page

    from cplane.browser import PageLease


def guarded_options(options: PageOptions) -> list[str]:
    """Return the names of the page options that a session must allow."""
    found: list[str] = list(options.caller_scripts)
    found += ["ignore_https_errors"] if options.ignore_https_errors else []
    return found + (["proxy"] if options.proxy is not None else [])


def bind_pages(lease: "PageLease", held: SessionHold) -> None:
    """End the attempt when a window of its page opens a document of a host that the session is not bound to.

    Frames inside a page and what it loads are not limited: browsers separate them by origin.

    Args:
        lease: a page whose context no other job uses.
        held: the session that its context has; the hosts that are opened are noted in it.
    """

    def check(url: str) -> None:
        host = host_in(url)
        if host is None:
            return
        if held.binding.permits(host):
            held.visited.add(host)
        else:
            lease.lose(held.binding.refusal(held.name, host))

    def on_navigated(frame: "Frame") -> None:
        if frame.parent_frame is None:
            check(frame.url)

    def watch(page: "Page") -> None:
        page.on("framenavigated", on_navigated)
        check(page.url)  # a popup may be somewhere already

    watch(lease.page)
    lease.context.on("page", watch)
