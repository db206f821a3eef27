"""What a session may be used for: which hosts match, and which are read from a state."""

from typing import Any

import pytest

from cplane.errors import InvalidSession, SessionRefused
from cplane.sessions.binding import (
    MAX_ALLOWED,
    SessionBinding,
    check_allowed_hosts,
    check_allowed_options,
    host_in,
    read_binding,
    stored_hosts,
)
from cplane.sessions.storage_state import empty

STATE: dict[str, Any] = {
    "cookies": [
        {"name": "a", "value": "v", "domain": "shop.example", "path": "/"},
        {"name": "b", "value": "v", "domain": ".IDP.example", "path": "/"},
        {"name": "c", "value": "v", "url": "https://by-url.example/x"},
        {"name": "d", "value": "v", "domain": "[::1]", "path": "/"},
        {"name": "e", "value": "v", "domain": "*", "path": "/"},
    ],
    "origins": [{"origin": "https://app.example:8443", "localStorage": []}],
}


def test_the_hosts_of_a_state_are_those_of_its_cookies_and_storage_and_those_visited() -> None:
    expected = ("*.idp.example", "::1", "app.example", "by-url.example", "idp.example", "shop.example", "seen.example")
    assert stored_hosts(STATE, {"seen.example"}) == tuple(sorted(expected))
    assert stored_hosts(empty()) == ()


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("shop.example", "shop.example", True),
        ("shop.example", "www.shop.example", False),
        ("shop.example", "shop.example.evil.test", False),
        ("shop.example", "evilshop.example", False),
        ("*.shop.example", "www.shop.example", True),
        ("*.shop.example", "a.b.shop.example", True),
        ("*.shop.example", "shop.example", False),
        ("*.shop.example", "evilshop.example", False),
        ("*", "anything.test", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.10", False),
        ("::1", "::1", True),
    ],
)
def test_a_host_matches_a_pattern(pattern: str, host: str, *, matches: bool) -> None:
    assert SessionBinding((pattern,)).permits(host) is matches
    assert SessionBinding(("other.example",), (pattern,)).permits(host) is matches


def test_an_empty_session_is_not_bound_and_one_older_than_bindings_is_bound_to_what_it_stores() -> None:
    assert read_binding(None, [], [], empty()).permits("anything.test")
    old = read_binding(None, [], [], STATE)
    assert old.permits("shop.example")
    assert not old.permits("anything.test")
    assert read_binding(["kept.example"], [], [], STATE).hosts == ("kept.example",)


def test_guarded_options_are_refused_unless_allowed_by_name() -> None:
    binding = SessionBinding(None, (), ("proxy",))
    binding.check_options("shop", ["proxy"])
    with pytest.raises(SessionRefused, match=r"'shop' does not allow html .*cplane sessions allow shop --option html"):
        binding.check_options("shop", ["proxy", "html"])


def test_a_refusal_names_the_first_hosts_and_counts_the_others() -> None:
    hosts = tuple(f"h{number}.example" for number in range(8))
    message = str(SessionBinding(hosts).refusal("shop", "evil.test"))
    assert "bound to h0.example, h1.example, h2.example, h3.example, h4.example and 3 more" in message
    assert "the page opened evil.test (if its jobs need that host, allow it: " in message


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Shop.Example:8443/x", "shop.example"),
        ("https://shop.example./", "shop.example"),
        ("http://[::1]:80/", "::1"),
        ("http://user@evil.test\\@shop.example/", "evil.test\\@shop.example"),
        ("about:blank", None),
        ("data:text/html,x", None),
        ("http://[broken", None),
    ],
)
def test_the_host_in_a_url(url: str, host: str | None) -> None:
    assert host_in(url) in {host, host and host.rpartition("@")[2]}


def test_hosts_to_allow_are_compared_as_browsers_write_them() -> None:
    given = [
        " Shop.example ",
        "*.IDP.example",
        "münchen.example",
        "*",
        "[::1]",
        "10.0.0.1",
        "localhost",
        "*.IDP.example",
    ]
    expected = ["shop.example", "*.idp.example", "xn--mnchen-3ya.example", "*", "::1", "10.0.0.1", "localhost"]
    assert check_allowed_hosts(given) == expected


@pytest.mark.parametrize(
    "host",
    [
        "",
        "https://shop.example",
        "shop.example:443",
        "shop.example/x",
        "*.",
        "*shop.example",
        "a..b",
        "-a.example",
        "ü" * 80,
        "a b",
    ],
)
def test_what_is_not_a_host_cannot_be_allowed(host: str) -> None:
    with pytest.raises(InvalidSession, match=r"is not a host .*without scheme and port") as error:
        check_allowed_hosts(["shop.example", host])
    assert [problem.path for problem in error.value.problems] == ["/hosts/1"]


def test_there_is_a_limit_of_allowed_hosts() -> None:
    with pytest.raises(InvalidSession, match=r"101 hosts are more than a session can allow, 100"):
        check_allowed_hosts([f"h{number}.example" for number in range(MAX_ALLOWED + 1)])


def test_only_guarded_options_can_be_allowed() -> None:
    assert check_allowed_options(["proxy", "html", "proxy"]) == ["proxy", "html"]
    with pytest.raises(InvalidSession, match=r"'cookies' is not an option .*a session guards add_script_tag, html"):
        check_allowed_options(["proxy", "cookies"])
