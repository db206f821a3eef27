"""Callers' regular expressions: RE2 decides what they are, and a match takes no longer than the text is long."""

import asyncio
import json
import time
from typing import Any, cast

import pytest

from cplane import Context
from cplane.browser import BrowserPool
from cplane.errors import InvalidArguments
from cplane.tasks import check, content, steps
from cplane.tasks.patterns import MAX_MATCHED_CHARS, MAX_PATTERN_LENGTH, MAX_PATTERNS, UrlPattern, UrlPatterns
from tests.tasks.ticking import Ticker

HOSTILE = "/(a+)+$"
HOSTILE_PATH = "a" * 40 + "!"
EXPENSIVE = [
    "(x+x+)+y",
    "(.*?,){11}P",
    "(?i)(.|a|b|ab)*(c|d)+$",
    r"(\pL|\d|[a-z0-9])*[^a]$",
    ".*.*.*.*.*.*.*.*.*.*=",
    r"(\w?){200}=",
    "(.?){100}=",
    "(a?){400}a{400}$",
    "(a|b)*a(a|b){300}$",
]


@pytest.mark.parametrize(
    ("pattern", "url", "matches"),
    [
        (r"\.css$", "http://a.example/style.css", True),
        (r"\.css$", "http://a.example/style.css?v=1", False),
        ("^never$", "http://a.example/", False),
        (r"(?i)/ADS/\d+", "http://a.example/ads/17", True),
        ("(?P<a>x)|(?P<b>y)", "http://a.example/y", True),
        ("ü", "http://a.example/ü", True),
        ("a|b", "\ud800b", True),
    ],
)
def test_a_pattern_is_searched_in_the_url(pattern: str, url: str, matches: bool) -> None:
    assert UrlPattern(pattern).matches(url) is matches


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", r"missing \): \( \(see github.com/google/re2/wiki/Syntax\)$"),
        (r"(a)\1", r"invalid escape sequence: \\1 \(it has no backreferences"),
        ("(?=a)b", r"invalid perl operator: \(\?= \(it has no lookaround"),
        ("(?<!a)b", r"invalid perl operator: \(\?<! \(it has no lookaround"),
        ("a{1001}", r"invalid repetition size: \{1001\} \(nothing is repeated more than 1000 times"),
        ("((a{100}){100}){100}", r"invalid repetition size: .* \(nothing is repeated more than 1000 times"),
        (r"(\pL{100}){9}", r"pattern too large - compile failed \(shorten the pattern, or repeat less often\)$"),
        (r"\pL\pL", r"pattern too large \(shorten the pattern, or repeat less often\)$"),
    ],
)
def test_what_re2_does_not_accept_is_refused_in_one_sentence(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^not a regular expression of RE2: .*{reason}"):
        UrlPattern(pattern)


@pytest.mark.parametrize("pattern", [HOSTILE, *EXPENSIVE])
@pytest.mark.parametrize("text", ["a", "x", "ab", "ü", "xä7,"])
def test_a_match_takes_milliseconds_however_hostile_the_pattern(pattern: str, text: str) -> None:
    compiled = UrlPattern(pattern)
    url = (text * MAX_MATCHED_CHARS)[: MAX_MATCHED_CHARS - 1] + "!"
    began = time.process_time()
    compiled.matches(url)
    assert time.process_time() - began < 0.2


async def test_many_expensive_patterns_do_not_hold_up_the_event_loop() -> None:
    patterns = UrlPatterns(["(a?){400}a{400}$"] * 20)
    async with Ticker() as ticker:
        matched = await asyncio.gather(*(patterns.any_matches("a" * (MAX_MATCHED_CHARS - 1) + "!") for _ in range(3)))
    assert matched == [False] * 3
    assert ticker.longest_s < 0.1


@pytest.mark.parametrize(
    ("job", "given"),
    [
        (content, '"reject_request_pattern": ["PATTERN"]'),
        (check, '"expect": {"url": "PATTERN"}'),
        (steps, '"steps": [{"action": "wait_for", "url": "PATTERN"}]'),
    ],
)
def test_each_job_refuses_such_a_pattern_at_submission(job: Any, given: str) -> None:
    with pytest.raises(InvalidArguments, match="not a regular expression of RE2: invalid perl operator"):
        job.encode_json(json.loads(f'{{"html": "x", {given.replace("PATTERN", "(?!a)")}}}'))
    with pytest.raises(InvalidArguments, match=f"at most {MAX_PATTERN_LENGTH} characters"):
        job.encode_json(json.loads(f'{{"html": "x", {given.replace("PATTERN", "a" * (MAX_PATTERN_LENGTH + 1))}}}'))


def test_the_number_of_patterns_is_limited() -> None:
    with pytest.raises(InvalidArguments, match=f"reject_request_pattern: .*at most {MAX_PATTERNS} items"):
        content.encode_json({"html": "x", "reject_request_pattern": cast("Any", ["a"] * (MAX_PATTERNS + 1))})


async def test_a_hostile_pattern_does_not_hold_up_the_event_loop(pool: BrowserPool, ctx: Context, site: Any) -> None:
    url = f"{site.url}/{HOSTILE_PATH}"
    step: dict[str, Any] = {"action": "wait_for", "url": HOSTILE, "timeout": 300}
    async with pool.page() as page, Ticker() as ticker:
        await content(page, ctx, url=url, reject_request_pattern=[HOSTILE])
        checked = await check(page, ctx, url=url, expect={"url": HOSTILE})
        with pytest.raises(Exception, match=r"step 1 \(wait_for ''\) timed out"):
            await steps(page, ctx, **steps.decode(steps.encode_json({"url": url, "steps": [step]})))
    assert not checked.verdicts[0].ok
    assert ticker.longest_s < 0.1
