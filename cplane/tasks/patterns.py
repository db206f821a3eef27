"""Regular expressions that callers send. RE2 matches them, in time linear in the URL; `re` might never return."""

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Protocol, cast

import re2 as untyped_re2

re2: Any = untyped_re2  # google-re2 has no type stubs

MAX_PATTERN_LENGTH = 500
"""Characters of a pattern."""

MAX_PATTERNS = 50
"""Patterns of one list."""

MAX_MEMORY_BYTES = 256 * 1024
"""Memory of a compiled pattern with its cache of states."""

MAX_INSTRUCTIONS = 1300
"""Instructions of a compiled pattern. `\\pL+` has 1201; a match takes up to 26 ns for each and each character (measured)."""

MAX_MATCHED_CHARS = 2000
"""Characters of a URL that a pattern is matched against."""

MAX_INLINE_STEPS = 100_000
"""Instructions times characters of a match on the event loop, at most 3 ms. A longer one runs in a thread."""

HINTS = {
    "invalid perl operator": "it has no lookaround and no atomic groups",
    "invalid escape sequence": "it has no backreferences, and the end of the text is \\z",
    "too large": "shorten the pattern, or repeat less often",
    "repetition size": "nothing is repeated more than 1000 times, nested repetitions multiplied",
}
"""What to change, by a part of RE2's message."""


HUGE_REPETITION = re.compile(r"\{\d{5,}(?:,\d*)?\}|\{\d*,\d{5,}\}")
"""A repetition by a number of five digits or more: far beyond what RE2 takes. Linear in the length of a pattern."""


class _Regexp(Protocol):
    """What is used of a pattern that google-re2 has compiled."""

    programsize: int

    def search(self, text: bytes) -> object | None: ...


class UrlPattern:
    """A compiled pattern for URLs.

    Args:
        pattern: a regular expression in the syntax of RE2.

    Raises:
        ValueError: RE2 does not accept it, or it is too large; one sentence says why and what to change.
    """

    def __init__(self, pattern: str) -> None:
        if HUGE_REPETITION.search(pattern):  # RE2 would read it as plain text
            raise _refusal(b"invalid repetition size")
        options = re2.Options()
        options.max_mem = MAX_MEMORY_BYTES
        options.log_errors = False  # it would print them to stderr
        options.never_capture = True
        try:
            self._regexp = cast("_Regexp", re2.compile(pattern.encode(errors="surrogatepass"), options))
        except re2.error as error:
            raise _refusal(error.args[0]) from None
        self.instructions = self._regexp.programsize
        if self.instructions > MAX_INSTRUCTIONS:
            raise _refusal(b"pattern too large")

    def matches(self, url: str) -> bool:
        """Return whether a part of the URL's first 2000 characters matches. Takes up to 70 ms."""
        return self._regexp.search(url[:MAX_MATCHED_CHARS].encode(errors="replace")) is not None


class UrlPatterns:
    """Patterns that are matched together.

    Args:
        patterns: regular expressions, as of `UrlPattern`.

    Raises:
        ValueError: as of `UrlPattern`.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [UrlPattern(pattern) for pattern in patterns]
        self._instructions = sum(pattern.instructions for pattern in self._patterns)
        self._one_at_a_time = asyncio.Lock()

    def __bool__(self) -> bool:
        return bool(self._patterns)

    async def any_matches(self, url: str) -> bool:
        """Return whether a pattern matches; expensive ones are matched in a thread, in which RE2 releases the GIL."""
        if self._instructions * min(len(url), MAX_MATCHED_CHARS) <= MAX_INLINE_STEPS:
            return self._any_matches(url)
        async with self._one_at_a_time:  # so that the requests of one page do not take all threads
            return await asyncio.to_thread(self._any_matches, url)

    def _any_matches(self, url: str) -> bool:
        return any(pattern.matches(url) for pattern in self._patterns)


def _refusal(reason: bytes | str) -> ValueError:
    text = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
    hint = next((hint for part, hint in HINTS.items() if part in text), "see github.com/google/re2/wiki/Syntax")
    return ValueError(f"not a regular expression of RE2: {text} ({hint})")
