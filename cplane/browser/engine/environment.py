"""The environment of browsers and their driver: the few variables that they need, and none of the worker's secrets.

A page that takes over its renderer reads what its process was started with.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar

import structlog
from playwright._impl import transport  # its public names offer no environment for the driver

NEEDED = frozenset(
    {
        # where programs, files and libraries are
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TMP", "TEMP", "LD_LIBRARY_PATH"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_DATA_DIRS", "XDG_RUNTIME_DIR"),
        # language, time, fonts, screen
        *("LANG", "LANGUAGE", "TZ", "TZDIR", "FONTCONFIG_FILE", "FONTCONFIG_PATH"),
        *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY"),
        # certificates
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
        # Chromium's, and Playwright's about itself
        *("CHROME_DEVEL_SANDBOX", "DEBUG", "PLAYWRIGHT_BROWSERS_PATH", "PLAYWRIGHT_HOST_PLATFORM_OVERRIDE"),
        *("PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS", "PW_LANG_NAME", "PW_LANG_NAME_VERSION"),
        "PW_CLI_DISPLAY_VERSION",
    }
)
"""Variables that browsers and their driver get. No proxy is among them: its URL may have a password."""

NEEDED_PREFIXES = ("LC_",)

log = structlog.get_logger("cplane")


def browser_environment(more: Iterable[str] = (), variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that a browser or its driver may have.

    Args:
        more: names of further ones.
        variables: where they are taken from; default: our environment.
    """
    names = NEEDED | frozenset(more)
    return {name: value for name, value in variables.items() if name in names or name.startswith(NEEDED_PREFIXES)}


_of_next: ContextVar[tuple[frozenset[str], Mapping[str, str]] | None] = ContextVar("_of_next", default=None)
"""Names of further variables for the driver that is being started, and values that it gets besides; None: it is not ours."""

HOOK = "get_driver_env"
"""Where Playwright's transport finds the environment of a driver."""

_playwrights: Callable[[], dict[str, str]] | None = getattr(transport, HOOK, None)


def restrict_next_driver(more: Iterable[str], given: Mapping[str, str]) -> None:
    """Give drivers that are started in this context the environment of a browser.

    Playwright starts the driver with a copy of the worker's environment. Drivers that other code starts keep it.

    Args:
        more: names of further variables.
        given: variables that it gets besides.
    """
    _of_next.set((frozenset(more), given))
    if _playwrights is None:
        log.warning(
            "driver_not_restricted", hint="this version of Playwright gives its driver all variables of the worker"
        )
        return
    setattr(transport, HOOK, _driver_environment)


def _driver_environment() -> dict[str, str]:
    variables = _playwrights() if _playwrights is not None else dict(os.environ)
    of_next = _of_next.get()
    if of_next is None:
        return variables
    more, given = of_next
    return {**browser_environment(more, variables), **given}
