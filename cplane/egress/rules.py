"""Which hosts pages may reach: public addresses at the ports of the web, and what is allowed or denied by name. Decides only; asks nobody."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

WEB_PORTS = frozenset({80, 443})
LOOPBACK, PRIVATE = "loopback", "private"
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""What IANA gives out of IPv6; all else is special, translated to IPv4, or given to nobody."""
PORTS_RULE = "only ports 80 and 443 are open, and CPLANE_EGRESS_ALLOW does not have this one"
WORDS: dict[str, tuple[str, ...]] = {
    LOOPBACK: ("127.0.0.0/8", "::1/128"),
    PRIVATE: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
}

DEVIATING = frozenset("ßẞς\u200c\u200d")
"""Letters that the codec of Python (IDNA 2003) maps away and browsers (UTS 46) keep."""

REFUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a loopback address", WORDS[LOOPBACK]),
    ("a private address", WORDS[PRIVATE]),
    ("a link-local address, as of cloud metadata", ("169.254.0.0/16", "fe80::/10")),
    ("the address of a cloud's host", ("168.63.129.16/32",)),  # Azure's; public by number, and answered by the machine's own host
    ("an address shared by a carrier (RFC 6598)", ("100.64.0.0/10",)),
    ("an unspecified address", ("0.0.0.0/8", "::/128")),
    ("a multicast address", ("224.0.0.0/4", "ff00::/8")),
    ("a reserved address", ("240.0.0.0/4", "192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "100::/64", "5f00::/16")),
    ("an address for documentation", ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")),
    ("an address for benchmarks", ("198.18.0.0/15", "2001:2::/48")),
    (
        "an IPv6 address that stands for an IPv4 one",
        ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
    ),
)  # fmt: skip
"""IANA's registries of special-purpose addresses, and the encodings of IPv4 in IPv6 (RFC 4291, 2765, 6052, 8215, 3056, 4380)."""

REFUSED_NETWORKS: tuple[tuple[str, Network], ...] = tuple(
    (name, ipaddress.ip_network(network)) for name, networks in REFUSED for network in networks
)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A host that was not reached, and the rule that says so; without a host: all of them from then on."""

    host: str
    port: int
    rule: str

    def __str__(self) -> str:
        return self.rule if not self.host else f"{bracketed(self.host)}:{self.port} was not reached: {self.rule}"


@dataclass(frozen=True, slots=True)
class Failed:
    """A host that could not be reached, and why."""

    host: str
    port: int
    reason: str

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port} was not reached: {self.reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a list: a name, all names below one, or a network; at one port, or at any."""

    text: str
    name: str = ""
    below: bool = False
    networks: tuple[Network, ...] = ()
    port: int | None = None

    @classmethod
    def read(cls, text: str) -> "Entry":
        """An entry from `host`, `*.domain`, an address, a network in CIDR notation, `loopback` or `private`; each with `:port` or without.

        Raises:
            ValueError: it is none of these.
        """
        place, port = _split_port(text.strip().lower())
        if place in WORDS:
            return cls(text, networks=tuple(map(ipaddress.ip_network, WORDS[place])), port=port)
        try:
            return cls(text, networks=(_unmapped(ipaddress.ip_network(place.strip("[]"), strict=False)),), port=port)
        except ValueError:
            pass
        return cls(text, name=_read_name(text, place.removeprefix("*.")), below=place.startswith("*."), port=port)

    def names(self, name: str, port: int) -> bool:
        """Whether it is about this name."""
        if not self.name or self.port not in {None, port}:
            return False
        return name.endswith(f".{self.name}") if self.below else name == self.name

    def covers(self, address: Address, port: int) -> bool:
        """Whether it is about this address."""
        return self.port in {None, port} and any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class EgressRules:
    """What is denied stays closed, what is allowed is open; of the rest the public addresses at ports 80 and 443."""

    allow: tuple[Entry, ...] = ()
    deny: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> "EgressRules":
        """Rules from two lists of entries; raises ValueError for an entry that is none."""
        return cls(tuple(map(Entry.read, allow)), tuple(map(Entry.read, deny)))

    def judge_name(self, host: str, port: int) -> Blocked | None:
        """What can be said before the name is resolved."""
        name = normal_name(host)
        for entry in self.deny:
            if entry.names(name, port):
                return Blocked(host, port, f"CPLANE_EGRESS_DENY has {entry.text}")
        return None

    def judge(self, host: str, port: int, addresses: Sequence[Address], *, any_port: bool = False) -> Blocked | None:
        """What is said of a host with all of its addresses; None: it may be reached.

        One address that may not be reached closes the host: who answers with both kinds has something in mind.
        """
        if (blocked := self.judge_name(host, port)) is not None:
            return blocked
        named = any(entry.names(normal_name(host), port) for entry in self.allow)
        for address in map(plain, addresses):
            if denied := next((entry for entry in self.deny if entry.covers(address, port)), None):
                return Blocked(host, port, f"CPLANE_EGRESS_DENY has {denied.text}")
            if named or any(entry.covers(address, port) for entry in self.allow):
                continue
            if (kind := refused(address)) is not None:
                return Blocked(host, port, f"{address} is {kind}, and CPLANE_EGRESS_ALLOW does not have it")
            if port not in WEB_PORTS and not any_port:
                return Blocked(host, port, PORTS_RULE)
        return None

    def judge_unresolved(self, host: str, port: int) -> Blocked | None:
        """What can be said of a name that only a proxy of the job's own may know: its address is not judged, all else is."""
        if (blocked := self.judge_name(host, port)) is not None:
            return blocked
        name = normal_name(host)
        if any(entry.names(name, port) for entry in self.allow):
            return None
        if name.rpartition(".")[2] == "localhost":  # RFC 6761: whoever resolves it, it is their own machine
            return Blocked(host, port, "localhost is a loopback address, and CPLANE_EGRESS_ALLOW does not have it")
        return None if port in WEB_PORTS else Blocked(host, port, PORTS_RULE)


def refused(address: Address) -> str | None:
    """Why an address is not one of the public internet; None: it is."""
    for name, network in REFUSED_NETWORKS:
        if address in network:
            return name
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return "not a global unicast address"
    return None if address.is_global else "not a public address"


def plain(address: Address) -> Address:
    """The IPv4 address that a mapped IPv6 address is dialled as; without a zone."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def normal_name(host: str) -> str:
    """A host name as names are compared: small, in its ASCII form, without the dot at its end."""
    name = host.strip().lower().rstrip(".")
    try:
        return name.encode("idna").decode() if not name.isascii() else name
    except UnicodeError:
        return name


def literal(host: str) -> Address | None:
    """The address that a host is, when it is not a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _unmapped(network: Network) -> Network:
    """The IPv4 network that a mapped one stands for: an address is judged as what is dialled."""
    if not isinstance(network, IPv6Network) or network.prefixlen < 96:
        return network
    start = network.network_address.ipv4_mapped
    return network if start is None else IPv4Network((start, network.prefixlen - 96))


def _read_name(text: str, place: str) -> str:
    """The name of an entry, as it arrives at a gate.

    Raises:
        ValueError: it is none, or browsers read it otherwise.
    """
    name = normal_name(place)
    parts = name.split(".")
    if not name or not all(part and part.replace("-", "").replace("_", "").isalnum() for part in parts):
        raise ValueError(f"'{text}' is no host, *.domain, address, network, loopback or private, with or without :port")
    if parts[-1].isdigit() or parts[-1].startswith("0x"):  # for browsers this is an address, in one of its short forms
        raise ValueError(
            f"'{text}' is no name and no full address; write an address as 127.0.0.1, a network as 10.0.0.0/8"
        )
    if not name.isascii() or set(place) & DEVIATING:
        raise ValueError(f"'{text}' has no one ASCII form; write it as it stands in DNS, with xn--")
    return name


def _split_port(text: str) -> tuple[str, int | None]:
    place, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or (":" in place and not place.endswith("]")):
        return text, None
    if not 0 < int(port) < 65536:
        raise ValueError(f"'{text}' has no port between 1 and 65535")
    return place, int(port)
