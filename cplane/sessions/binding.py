"""What a browser session may be used for: the hosts it is bound to, and the options that it allows by name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from cplane.errors import InvalidSession, Problem, SessionRefused

GuardedOption = Literal["add_script_tag", "html", "ignore_https_errors", "proxy"]
GUARDED_OPTIONS: tuple[GuardedOption, ...] = get_args(GuardedOption)
"""Options by which the caller of a job could read a session: the caller's scripts in the page, or the caller's connection."""

ANY_HOST = "*"
MAX_ALLOWED = 100
"""Hosts that a session can allow by name."""
MAX_SHOWN = 5
"""Hosts that a message names."""

_LABEL = "[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
HOST_PATTERN = re.compile(rf"(\*\.)?(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*|(?=.{{2,45}}$)[0-9a-f]*:[0-9a-f:.]*|\*")
"""A host in lower case and IDNA form, `*.` before one for its subdomains, an IP address, or `*`."""

HINT = "write hosts as example.com, *.example.com for its subdomains, or * for all; without scheme and port"


@dataclass(frozen=True, slots=True)
class SessionBinding:
    """What a session may be used for.

    Args:
        hosts: the hosts whose pages were open when it was saved, or for which it has cookies or storage; None: it is
            empty, and not bound yet.
        allowed_hosts: further hosts that somebody allowed by name.
        allowed_options: the guarded options that somebody allowed by name.
    """

    hosts: tuple[str, ...] | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_options: tuple[str, ...] = ()

    def permits(self, host: str) -> bool:
        """Return whether a page of this host may be opened.

        Args:
            host: host name in lower case, without a port.
        """
        return self.hosts is None or any(_matches(pattern, host) for pattern in (*self.hosts, *self.allowed_hosts))

    def check_options(self, name: str, options: Iterable[str]) -> None:
        """Refuse guarded options that the session does not allow.

        Args:
            name: name of the session.
            options: the guarded options of a page.

        Raises:
            SessionRefused: it does not allow one; the message names it.
        """
        for option in options:
            if option not in self.allowed_options:
                hint = (
                    f"if every caller may read the session, allow it: `cplane sessions allow {name} --option {option}`"
                )
                raise SessionRefused(f"the browser session '{name}' does not allow {option}", hint=hint)

    def refusal(self, name: str, host: str) -> SessionRefused:
        """Return the error for a page of a host that is not permitted."""
        bound = [*(self.hosts or ()), *self.allowed_hosts]
        more = f" and {len(bound) - MAX_SHOWN} more" if len(bound) > MAX_SHOWN else ""
        hint = f"if its jobs need that host, allow it: `cplane sessions allow {name} --host {host}`"
        shown = ", ".join(bound[:MAX_SHOWN])
        return SessionRefused(
            f"the browser session '{name}' is bound to {shown}{more}; the page opened {host}", hint=hint
        )


def read_binding(
    hosts: Iterable[str] | None, allowed_hosts: Iterable[str], allowed_options: Iterable[str], state: Mapping[str, Any]
) -> SessionBinding:
    """Return the binding of a stored session.

    Args:
        hosts: the hosts that are stored with it; None: none are, because it is empty or older than bindings.
        allowed_hosts: further hosts.
        allowed_options: guarded options.
        state: its storage_state, which tells the hosts if none are stored.
    """
    found = stored_hosts(state) if hosts is None else tuple(hosts)
    return SessionBinding(found or None, tuple(allowed_hosts), tuple(allowed_options))


def stored_hosts(state: Mapping[str, Any], visited: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the hosts for which a state has cookies or storage, and those whose pages were open, in order.

    Args:
        state: a valid storage_state.
        visited: hosts whose pages were open when it was taken.
    """
    found = set(visited)
    for cookie in cast("list[dict[str, Any]]", state.get("cookies", [])):
        domain = cookie.get("domain")
        if domain:
            host = _plain(str(domain).removeprefix("."))
            found |= {host, f"*.{host}"} if str(domain).startswith(".") else {host}
        else:
            found.add(host_in(str(cookie.get("url"))) or "")
    found |= {
        host_in(str(origin.get("origin"))) or "" for origin in cast("list[dict[str, Any]]", state.get("origins", []))
    }
    return tuple(sorted(host for host in found if host != ANY_HOST and HOST_PATTERN.fullmatch(host)))


def host_in(url: str) -> str | None:
    """Return the host of a URL in lower case, without its port; None if it has none, as about:blank."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    return host.removesuffix(".") if host else None


def check_allowed_hosts(hosts: Iterable[str]) -> list[str]:
    """Return hosts to allow in the form in which they are compared.

    Raises:
        InvalidSession: one is not a host; `problems` names each.
    """
    found = list(dict.fromkeys(_idna(host.strip()) for host in hosts))
    wrong = [host for host in found if not HOST_PATTERN.fullmatch(host)]
    if wrong:
        problems = [Problem(f"/hosts/{found.index(host)}", "not a host") for host in wrong[:MAX_SHOWN]]
        raise InvalidSession(f"{wrong[0][:100]!r} is not a host", problems, hint=HINT)
    if len(found) > MAX_ALLOWED:
        raise InvalidSession(
            f"{len(found)} hosts are more than a session can allow, {MAX_ALLOWED}", hint="allow * for all"
        )
    return found


def check_allowed_options(options: Iterable[str]) -> list[str]:
    """Return the names of options to allow.

    Raises:
        InvalidSession: one is not a guarded option; `problems` names each.
    """
    found = list(dict.fromkeys(options))
    wrong = [option for option in found if option not in GUARDED_OPTIONS]
    if wrong:
        problems = [Problem(f"/options/{found.index(option)}", "not an option that sessions guard") for option in wrong]
        hint = f"a session guards {', '.join(GUARDED_OPTIONS)}"
        raise InvalidSession(
            f"{wrong[0][:100]!r} is not an option that sessions guard", problems[:MAX_SHOWN], hint=hint
        )
    return found


def _matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern in {ANY_HOST, host}


def _plain(host: str) -> str:
    """Return a host in lower case, an IPv6 address without its brackets."""
    return host.lower().removeprefix("[").removesuffix("]")


def _idna(host: str) -> str:
    prefix, bare = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    if bare.isascii():
        return prefix + _plain(bare)
    try:
        return prefix + bare.encode("idna").decode().lower()
    except UnicodeError:
        return host
