"""The rules for the hosts that pages can reach."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplane.egress import Blocked, EgressRules, Entry
from cplane.egress.rules import GLOBAL_UNICAST, Address, literal, refused

PUBLIC = EgressRules()
REFUSED = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "100.64.0.1": "carrier",
    "100.127.255.255": "carrier",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "::": "unspecified",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "255.255.255.255": "reserved",
    "240.0.0.1": "reserved",
    "192.0.0.8": "reserved",
    "192.88.99.1": "reserved",
    "fec0::1": "reserved",
    "100::1": "reserved",
    "192.0.2.1": "documentation",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "2001:db8::1": "documentation",
    "198.18.0.1": "benchmarks",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "::ffff:169.254.169.254": "link-local",
    "::127.0.0.1": "embeds an IPv4",
    "64:ff9b::7f00:1": "embeds an IPv4",
    "64:ff9b::808:808": "embeds an IPv4",
    "64:ff9b:1::1": "embeds an IPv4",
    "2002:7f00:1::1": "embeds an IPv4",
    "2001:0:4136:e378::1": "embeds an IPv4",
    "::ffff:0:7f00:1": "embeds an IPv4",
    "168.63.129.16": "a cloud's host",
    "::ffff:168.63.129.16": "a cloud's host",
    "1::1": "not a global unicast",
    "4000::1": "not a global unicast",
    "fe00::1": "not a global unicast",
}


def judged(rules: EgressRules, host: str, *addresses: str, port: int = 443) -> Blocked | None:
    found: list[Address] = [ipaddress.ip_address(address) for address in addresses or (host,)]
    return rules.judge(host, port, found)


@pytest.mark.parametrize(("address", "kind"), REFUSED.items(), ids=REFUSED)
def test_an_address_that_is_not_public_is_refused_and_named(address: str, kind: str) -> None:
    blocked = judged(PUBLIC, "site.example", address)
    assert blocked is not None
    assert kind in blocked.rule
    assert str(blocked).startswith("site.example:443 was not reached: ")


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "172.32.0.1", "11.0.0.1"]
)
def test_a_public_address_is_allowed_at_web_ports_only(address: str) -> None:
    assert judged(PUBLIC, "site.example", address, port=80) is None
    assert judged(PUBLIC, "site.example", address, port=443) is None
    for port in (22, 25, 6379, 5432, 8080):
        blocked = judged(PUBLIC, "site.example", address, port=port)
        assert blocked is not None
        assert "only ports 80 and 443" in blocked.rule


def test_one_private_address_among_public_ones_blocks_the_host() -> None:
    assert judged(PUBLIC, "site.example", "1.1.1.1", "10.0.0.1") is not None


def test_an_allow_entry_opens_every_port_or_the_one_it_names() -> None:
    rules = EgressRules.read(["loopback", "10.1.0.0/16:8080", "intranet.example", "*.dev.example:3000", "[::1]:99"])
    assert judged(rules, "localhost", "127.0.0.1", port=8000) is None
    assert judged(rules, "localhost", "::1", port=8000) is None
    assert judged(rules, "a", "10.1.2.3", port=8080) is None
    assert judged(rules, "a", "10.1.2.3", port=80) is not None
    assert judged(rules, "a", "10.2.2.3", port=8080) is not None
    assert judged(rules, "Intranet.Example.", "192.168.1.1", port=8443) is None
    assert judged(rules, "intranet.example.evil.example", "192.168.1.1") is not None
    assert judged(rules, "x.dev.example", "192.168.1.1", port=3000) is None
    assert judged(rules, "dev.example", "192.168.1.1", port=3000) is not None
    assert judged(rules, "x.dev.example", "192.168.1.1", port=80) is not None


def test_deny_takes_precedence_over_allow() -> None:
    rules = EgressRules.read(["private", "*.example"], ["10.9.0.0/16", "bad.example", "*.ads.example:443"])
    assert judged(rules, "a.example", "10.1.0.1") is None
    for host, address in [("a.example", "10.9.1.1"), ("bad.example", "1.1.1.1"), ("x.ads.example", "1.1.1.1")]:
        blocked = judged(rules, host, address)
        assert blocked is not None
        assert "CPLANE_EGRESS_DENY has" in blocked.rule
    assert judged(rules, "x.ads.example", "1.1.1.1", port=80) is None
    assert rules.judge_name("BAD.example.", 443) is not None


def test_names_are_compared_in_their_ascii_form() -> None:
    rules = EgressRules.read((), ["bücher.example"])
    assert rules.judge_name("xn--bcher-kva.example", 443) is not None


@pytest.mark.parametrize(
    "text", ["", "*", "a b", "http://host", "10.0.0.0/99", "host:0", "host:70000", "*.", "user@host", "a/b", "a%2eb"]
)
def test_text_that_is_not_an_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a host, |has no port"):
        Entry.read(text)


@pytest.mark.parametrize(
    "text", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "10.0.0.256", "*.10.0.0.1", "127.0.0.1.:80"]
)
def test_an_entry_with_a_short_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a name nor a full address; write an address as"):
        Entry.read(text)


@pytest.mark.parametrize("text", ["straße.example", "*.faß.example", "βόλος.example", "a\u200db.example", "é" * 70])
def test_an_entry_that_browsers_may_read_as_another_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="has more than one ASCII form; write it as it is in DNS, with xn--"):
        Entry.read(text)


def test_an_entry_with_mapped_addresses_covers_the_ipv4_addresses_that_are_dialled() -> None:
    rules = EgressRules.read(["::ffff:10.1.0.0/112"], ["[::ffff:1.1.1.1]:443"])
    assert judged(rules, "a.example", "10.1.2.3") is None
    assert judged(rules, "a.example", "10.2.2.3") is not None
    assert judged(rules, "a.example", "1.1.1.1") is not None
    assert judged(rules, "a.example", "::ffff:1.1.1.1") is not None
    assert judged(rules, "a.example", "1.1.1.1", port=80) is None


def test_container_names_may_have_underscores() -> None:
    assert judged(EgressRules.read(["my_app_1:8000"]), "my_app_1", "172.17.0.2", port=8000) is None


def test_a_name_that_only_a_proxy_resolves_is_judged_by_name_and_port() -> None:
    rules = EgressRules.read(["db.corp.example:5432", "dev.localhost"], ["*.ads.example"])
    assert rules.judge_unresolved("site.example", 443) is None
    assert rules.judge_unresolved("db.corp.example", 5432) is None
    assert rules.judge_unresolved("dev.localhost", 8000) is None
    for host, port, rule in [
        ("site.example", 25, "only ports 80 and 443"),
        ("db.corp.example", 22, "only ports 80 and 443"),
        ("x.ads.example", 443, "CPLANE_EGRESS_DENY has"),
        ("localhost", 80, "loopback"),
        ("App.Localhost.", 80, "loopback"),
    ]:
        blocked = rules.judge_unresolved(host, port)
        assert blocked is not None
        assert rule in blocked.rule


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "localhost.", "127.0.0.1."])
def test_other_notations_of_an_address_are_names_and_resolve_to_refused_addresses(host: str) -> None:
    assert literal(host) is None
    try:
        found = {literal(str(place[0])) for *_, place in socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)}
    except OSError:
        return  # this resolver does not read it as an address
    assert all(address is not None and refused(address) for address in found)


@given(st.ip_addresses())
def test_only_global_unicast_addresses_are_allowed(address: Address) -> None:
    if judged(PUBLIC, "site.example", str(address)) is None:
        assert address.is_global or (address.version == 6 and address.ipv4_mapped is not None)
        assert not address.is_multicast
        assert address.version == 4 or address.ipv4_mapped is not None or address in GLOBAL_UNICAST
