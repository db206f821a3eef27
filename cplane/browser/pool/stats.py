"""The state of a browser pool at one moment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The state of a browser pool at one moment, and its counts since it was opened."""

    max_pages: int
    """Slots: the maximum number of pages that are leased concurrently."""
    free: int
    """Pages that can be acquired now; 0 while there is no browser."""
    open: int
    """Slots in use: pages that are leased, being opened or being closed."""
    returning: int
    """Released pages of shared contexts that are still being checked; most of them hold no slot."""
    warm: int
    """Warm pages: open and not leased yet."""
    waiting: int
    """Callers that wait for a slot."""
    browsers: int
    """Browsers that take new pages."""
    launches: int
    """Browsers launched so far."""
    lost: int
    """Browsers that ended by themselves, so far."""
    retired: int
    """Browsers that were replaced so far, because they reached a limit or could no longer be trusted."""
    leased: int
    """Pages leased so far."""
    leased_warm: int
    """How many of those were warm when they were requested."""
    browser_version: str | None
    """None while there is no browser."""
