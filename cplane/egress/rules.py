"""Rules for the hosts that pages can reach: public addresses at web ports, and allow and deny lists. No I/O."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

WEB_PORTS = frozenset({80, 443})
LOOPBACK, PRIVATE = "loopback", "private"
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The part of IPv6 that IANA allocates; the rest is special, translated to IPv4, or unassigned."""
PORTS_RULE = "only ports 80 and 443 are open, and CPLANE_EGRESS_ALLOW does not have this one"
NETWORK_NAMES: dict[str, tuple[str, ...]] = {
    LOOPBACK: ("127.0.0.0/8", "::1/128"),
    PRIVATE: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
}

DEVIATING_LETTERS = frozenset("ßẞς\u200c\u200d")
"""Letters that Python's codec (IDNA 2003) replaces and browsers (UTS 46) keep."""

REFUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a loopback address", NETWORK_NAMES[LOOPBACK]),
    ("a private address", NETWORK_NAMES[PRIVATE]),
    ("a link-local address, as of cloud metadata", ("169.254.0.0/16", "fe80::/10")),
    ("the address of a cloud's host", ("168.63.129.16/32",)),  # Azure; a public number that the machine's own host responds to
    ("an address shared by a carrier (RFC 6598)", ("100.64.0.0/10",)),
    ("an unspecified address", ("0.0.0.0/8", "::/128")),
    ("a multicast address", ("224.0.0.0/4", "ff00::/8")),
    ("a reserved address", ("240.0.0.0/4", "192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "100::/64", "5f00::/16")),
    ("an address for documentation", ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")),
    ("an address for benchmarks", ("198.18.0.0/15", "2001:2::/48")),
    (
        "an IPv6 address that embeds an IPv4 one",
        ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
    ),
)  # fmt: skip
"""IANA's registries of special-purpose addresses; encodings of IPv4 in IPv6 (RFC 4291, 2765, 6052, 8215, 3056, 4380)."""

REFUSED_NETWORKS: tuple[tuple[str, Network], ...] = tuple(
    (name, ipaddress.ip_network(network)) for name, networks in REFUSED for network in networks
)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A host that the rules did not allow, and the rule; without a host: all hosts from then on."""

    host: str
    port: int
    rule: str

    def __str__(self) -> str:
        return self.rule if not self.host else f"{bracketed(self.host)}:{self.port} was not reached: {self.rule}"


@dataclass(frozen=True, slots=True)
class Failed:
    """A host that was allowed and could not be reached, and the reason."""

    host: str
    port: int
    reason: str

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port} was not reached: {self.reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a list: a name, all names below a domain, or networks; at one port or all."""

    text: str
    name: str = ""
    below: bool = False
    networks: tuple[Network, ...] = ()
    port: int | None = None

    @classmethod
    def read(cls, text: str) -> "Entry":
        """Read an entry.

        Args:
            text: `host`, `*.domain`, an address, a network in CIDR notation, `loopback` or `private`; each with or
                without `:port`.

        Raises:
            ValueError: it is none of these.
        """
        host, port = _split_port(text.strip().lower())
        if host in NETWORK_NAMES:
            return cls(text, networks=tuple(map(ipaddress.ip_network, NETWORK_NAMES[host])), port=port)
        try:
            return cls(text, networks=(_unmapped(ipaddress.ip_network(host.strip("[]"), strict=False)),), port=port)
        except ValueError:
            pass
        return cls(text, name=_read_name(text, host.removeprefix("*.")), below=host.startswith("*."), port=port)

    def matches_name(self, name: str, port: int) -> bool:
        """Return whether the entry covers this name."""
        if not self.name or self.port not in {None, port}:
            return False
        return name.endswith(f".{self.name}") if self.below else name == self.name

    def matches_address(self, address: Address, port: int) -> bool:
        """Return whether the entry covers this address."""
        return self.port in {None, port} and any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class EgressRules:
    """Which hosts pages can reach: allowed hosts and public addresses at ports 80 and 443, except denied hosts.

    Args:
        allow: entries that open hosts.
        deny: entries that close hosts; they take precedence.
    """

    allow: tuple[Entry, ...] = ()
    deny: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> "EgressRules":
        """Read rules from two lists of entries.

        Args:
            allow: entries as of `Entry.read`.
            deny: entries as of `Entry.read`; they take precedence.

        Raises:
            ValueError: an entry cannot be read.
        """
        return cls(tuple(map(Entry.read, allow)), tuple(map(Entry.read, deny)))

    def judge_name(self, host: str, port: int) -> Blocked | None:
        """Judge a host before its name is resolved; None: nothing denies it."""
        name = normal_name(host)
        for entry in self.deny:
            if entry.matches_name(name, port):
                return Blocked(host, port, f"CPLANE_EGRESS_DENY has {entry.text}")
        return None

    def judge(self, host: str, port: int, addresses: Sequence[Address], *, any_port: bool = False) -> Blocked | None:
        """Judge a host with all of its addresses.

        One address that is not allowed closes the host: public and private addresses together look like an attack.

        Args:
            host: a name or an address.
            port: the port to connect to.
            addresses: all addresses of the host.
            any_port: also allow other ports than 80 and 443.

        Returns:
            None if the host is allowed.
        """
        if (blocked := self.judge_name(host, port)) is not None:
            return blocked
        named = any(entry.matches_name(normal_name(host), port) for entry in self.allow)
        for address in map(plain, addresses):
            if denied := next((entry for entry in self.deny if entry.matches_address(address, port)), None):
                return Blocked(host, port, f"CPLANE_EGRESS_DENY has {denied.text}")
            if named or any(entry.matches_address(address, port) for entry in self.allow):
                continue
            if (kind := refused(address)) is not None:
                return Blocked(host, port, f"{address} is {kind}, and CPLANE_EGRESS_ALLOW does not have it")
            if port not in WEB_PORTS and not any_port:
                return Blocked(host, port, PORTS_RULE)
        return None

    def judge_unresolved(self, host: str, port: int) -> Blocked | None:
        """Judge a name that only the job's proxy may be able to resolve: by everything except its addresses."""
        if (blocked := self.judge_name(host, port)) is not None:
            return blocked
        name = normal_name(host)
        if any(entry.matches_name(name, port) for entry in self.allow):
            return None
        if name.rpartition(".")[2] == "localhost":  # RFC 6761: for every resolver it is its own machine
            return Blocked(host, port, "localhost is a loopback address, and CPLANE_EGRESS_ALLOW does not have it")
        return None if port in WEB_PORTS else Blocked(host, port, PORTS_RULE)


def refused(address: Address) -> str | None:
    """Return why an address is not public; None: it is public."""
    for name, network in REFUSED_NETWORKS:
        if address in network:
            return name
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return "not a global unicast address"
    return None if address.is_global else "not a public address"


def plain(address: Address) -> Address:
    """Return an address as it is dialled: a mapped IPv6 address as IPv4, and without a zone."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def normal_name(host: str) -> str:
    """Normalize a host name for comparison: lower case, in its ASCII form, without a dot at the end."""
    name = host.strip().lower().rstrip(".")
    try:
        return name.encode("idna").decode() if not name.isascii() else name
    except UnicodeError:
        return name


def literal(host: str) -> Address | None:
    """Return the address that a host is; None: it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def bracketed(host: str) -> str:
    """Return a host as it is written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _unmapped(network: Network) -> Network:
    """Return the IPv4 network of a mapped IPv6 network: addresses are judged as they are dialled."""
    if not isinstance(network, IPv6Network) or network.prefixlen < 96:
        return network
    start = network.network_address.ipv4_mapped
    return network if start is None else IPv4Network((start, network.prefixlen - 96))


def _read_name(text: str, host: str) -> str:
    """Return the name of an entry in the form in which it arrives at a gate.

    Raises:
        ValueError: it is not a name, or browsers read it differently.
    """
    name = normal_name(host)
    parts = name.split(".")
    if not name or not all(part and part.replace("-", "").replace("_", "").isalnum() for part in parts):
        raise ValueError(
            f"'{text}' is not a host, *.domain, address, network, loopback or private, with or without :port"
        )
    if parts[-1].isdigit() or parts[-1].startswith("0x"):  # browsers read this as an address in a short form
        raise ValueError(
            f"'{text}' is neither a name nor a full address; write an address as 127.0.0.1, a network as 10.0.0.0/8"
        )
    if not name.isascii() or set(host) & DEVIATING_LETTERS:
        raise ValueError(f"'{text}' has more than one ASCII form; write it as it is in DNS, with xn--")
    return name


def _split_port(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        return text, None
    if not 0 < int(port) < 65536:
        raise ValueError(f"'{text}' has no port between 1 and 65535")
    return host, int(port)
