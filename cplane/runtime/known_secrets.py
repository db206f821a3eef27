"""Values that are known to be secrets, and their literal replacement in texts. Pure functions.

Patterns find what looks like a secret (`cplane/browser/masking.py`). A value that is known is replaced wherever it occurs,
whatever its name there.
"""

import base64
import binascii
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"

MIN_CHARS = 6
"""Shorter values are not replaced: they occur by chance."""
PLAIN_CHARS = 16
"""A cookie of letters or of digits alone is as likely a setting, such as `desktop`, below this length."""
MIN_LINE_CHARS = 16
"""A line of a value with several lines, such as a private key, is replaced alone from this length."""
MAX_VALUES = 200
"""Values that are replaced, at most."""
MAX_CHARS = 4096
"""Of a longer value, its beginning is replaced."""
MAX_LINES = 50
"""Lines of one value that are replaced alone."""
MAX_DEPTH = 20
MAX_ITEMS = 10_000
"""Items of arguments that are looked at."""

SECRET_NAME = re.compile(
    r"pass(wd|word|phrase|code)?\b|passw|pwd|secret|token|api[-_]?key|apikey|access[-_]?key|private[-_]?key|session|sess?id|csrf|xsrf|auth|"
    r"cookie|credential|signature|\bsig\b|\botp\b|\bpin\b|\bjwt\b|bearer",
    re.IGNORECASE,
)
"""Names of headers, parameters, fields, arguments and elements whose values are secrets."""

NO_SECRETS = frozenset({"session", "isolation"})
"""Arguments whose names look secret, and whose values are not: the name of a browser session."""
PARTLY_SECRET = NO_SECRETS | {"auth", "authenticate", "authentication", "cookies"}
"""Names of objects of which some members are secrets; of others with such names, all are."""


IN_COMPONENT = "!'()*~"
IN_URI = "!'()*~;,/?:@&=+$#"
"""What `encodeURIComponent` and `encodeURI` of JavaScript leave as it is, beside letters, digits, `-`, `_` and `.`."""


class KnownSecrets:
    """Values to replace.

    Args:
        values: the values; those with less than 6 characters are left out, because they occur by chance.
    """

    __slots__ = ("_count", "forms")

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = set(islice((value[:MAX_CHARS] for value in values if len(value) >= MIN_CHARS), MAX_VALUES))
        self._count = len(known)
        forms = {form for value in known for form in _forms(value)}
        self.forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))
        """Each value as it is, and as URLs, JSON and HTML write it; the longest first. Plain text, for another process."""

    def __bool__(self) -> bool:
        return bool(self.forms)

    def __repr__(self) -> str:
        return f"<KnownSecrets: {self._count}>"

    def mask(self, text: str) -> str:
        """Return the text with `***` for each value."""
        return mask_forms(text, self.forms)

    def mask_any(self, value: Any, depth: int = 0) -> Any:
        """Return a value of a log line with its texts masked: texts, mappings and lists of them, exceptions as text."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, BaseException):
            return self.mask(repr(value))
        if depth < MAX_DEPTH and isinstance(value, Mapping):
            given = cast("Mapping[object, object]", value)
            return {key: self.mask_any(item, depth + 1) for key, item in given.items()}
        if depth < MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
            return [self.mask_any(item, depth + 1) for item in cast("Iterable[object]", value)]
        return value

    def mask_cut(self, text: str, mark: str) -> str:
        """Return a text that was cut at its end, or at a mark, with `***` for each value and for what is left of one.

        Args:
            text: the text.
            mark: what stands where it was cut in the middle.
        """
        head, cut, tail = self.mask(text).partition(mark)
        for form in self.forms:
            if (left := next((n for n in range(len(form) - 1, 2, -1) if head.endswith(form[:n])), 0)) > 0:
                head = head[:-left] + MASK
                break
        for form in self.forms if cut else ():
            if (left := next((n for n in range(len(form) - 1, 2, -1) if tail.startswith(form[-n:])), 0)) > 0:
                tail = MASK + tail[left:]
                break
        return head + cut + tail

    def __or__(self, more: Iterable[str]) -> "KnownSecrets":
        """Return these values and some more."""
        extended = KnownSecrets(more)
        extended._count += self._count
        extended.forms = tuple(sorted({*self.forms, *extended.forms}, key=lambda form: (-len(form), form)))
        return extended


NOTHING_KNOWN = KnownSecrets()


def in_json(forms: Iterable[str]) -> list[str]:
    """Return the forms that can be within one string of JSON: their replacement leaves JSON whole."""
    return [form for form in forms if _is_in_json(form)]


def _is_in_json(form: str) -> bool:
    try:
        json.loads(f'"{form}"')
    except ValueError:
        return False
    return True


def mask_forms(text: str, forms: Iterable[str]) -> str:
    """Return the text with `***` for each of the forms, in their order."""
    for form in forms:
        if form in text:
            text = text.replace(form, MASK)
    return text


def in_arguments(arguments: object) -> Iterator[str]:
    """Yield the values of a job's arguments that are secrets.

    They are members with a name that looks secret, cookies, headers such as Authorization, parameters of URLs such as
    `?token=`, and the credentials of URLs.

    Args:
        arguments: the arguments as JSON values.
    """
    pending: list[tuple[str, object, int]] = [("", arguments, 0)]
    for _ in range(MAX_ITEMS):
        if not pending:
            return
        name, value, depth = pending.pop()
        if isinstance(value, str | int):
            yield from _in_text(name, str(value))
        elif depth < MAX_DEPTH and isinstance(value, Mapping):
            given = cast("Mapping[str, object]", value)
            yield from _in_object(name, given)
            above = f"{name} " if name not in PARTLY_SECRET and SECRET_NAME.search(name) else ""
            pending += [(f"{above}{key}", item, depth + 1) for key, item in given.items()]
        elif depth < MAX_DEPTH and isinstance(value, list | tuple):
            items = cast("list[object]", value)
            if len(items) == 2 and isinstance(items[0], str):  # a header as a pair
                pending.append((items[0], items[1], depth + 1))
            pending += [(name, item, depth + 1) for item in items]


def in_storage_state(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the secrets of a browser session: its cookies, and entries of localStorage with a name that looks secret.

    Args:
        state: a valid storage_state.
    """
    yield from in_cookies(state.get("cookies", []))
    for origin in state.get("origins", []):
        for item in origin.get("localStorage", []):
            if SECRET_NAME.search(item["name"]):
                yield item["value"]


def in_cookies(cookies: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the values of cookies that are no plain words, as settings are.

    Args:
        cookies: cookies as Playwright returns them.
    """
    for cookie in cookies:
        value, name = str(cookie.get("value", "")), str(cookie.get("name", ""))
        is_plain = len(value) < PLAIN_CHARS and (value.isalpha() or value.isdigit())
        if not is_plain or cookie.get("httpOnly") or SECRET_NAME.search(name):
            yield value


def _in_text(name: str, value: str) -> Iterator[str]:
    """Yield the secrets of a member of the arguments."""
    if name.lower().replace("_", "-") in {"cookie", "set-cookie"}:
        for pair in value.split(";"):
            yield pair.partition("=")[2].strip() or pair.strip()
    elif name and SECRET_NAME.search(name) and name not in NO_SECRETS:
        yield value
        scheme, _, credentials = value.partition(" ")
        if credentials and scheme.lower() in {"basic", "bearer", "digest", "token"}:
            yield credentials
            yield from _basic(credentials) if scheme.lower() == "basic" else ()
    if "://" in value[:32] or "?" in value[:MAX_CHARS]:
        yield from _in_url(value)


def _in_object(name: str, value: Mapping[str, object]) -> Iterator[str]:
    """Yield the value of a cookie or a field, which is named beside it, and credentials as HTTP sends them."""
    secret, names = value.get("value"), [value.get(key) for key in ("name", "selector", "id")]
    named_so = any(isinstance(each, str) and SECRET_NAME.search(each) for each in names)
    if isinstance(secret, str) and (named_so or name == "cookies"):
        yield secret
    user, password = value.get("username"), value.get("password")
    if isinstance(user, str) and isinstance(password, str):
        yield base64.b64encode(f"{user}:{password}".encode(errors="replace")).decode()


def _in_url(url: str) -> Iterator[str]:
    """Yield the password of a URL, and its parameters whose names look secret."""
    try:
        parts = urlsplit(url)
        password, parameters = parts.password, [*parse_qsl(parts.query), *parse_qsl(parts.fragment)]
    except ValueError:
        return
    if password:
        yield unquote(password)
    yield from (value for name, value in parameters if SECRET_NAME.search(name))


def _basic(credentials: str) -> Iterator[str]:
    """Yield the password of an Authorization header with Basic credentials."""
    try:
        yield base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return


def _forms(value: str) -> set[str]:
    """Return a value, and each long line of it, as it is and as URLs, JSON, HTML and Base64 write it."""
    lines = [line for line in value.splitlines() if len(line) >= MIN_LINE_CHARS and not line.startswith("-----")]
    return {form for each in (value, *lines[:MAX_LINES]) for form in _written(each)}


def _written(value: str) -> set[str]:
    readable = value.encode("utf-8", "replace")
    if value.isascii() and value.isalnum():
        return {value, _base64(readable)}
    in_urls = {quote(readable, safe=safe) for safe in ("", "/", IN_COMPONENT, IN_URI)} | {quote_plus(readable)}
    in_urls |= {re.sub("%[0-9A-F]{2}", lambda found: found.group().lower(), each) for each in in_urls}
    escaped = html.escape(value)
    in_html = {html.escape(value, quote=False), value.replace("&", "&amp;").replace('"', "&quot;")}
    in_html |= {escaped, *(escaped.replace("&#x27;", each) for each in ("&#39;", "&apos;"))}
    in_html |= {each.replace("&quot;", "&#34;") for each in in_html}
    in_json = {text for each in (value, *in_html) for text in _in_json(each)}
    in_json |= {text for each in in_json for text in _in_json(each)}  # JSON in JSON
    return {value, _base64(readable), repr(value)[1:-1]} | in_json | in_urls | in_html


def _in_json(text: str) -> set[str]:
    """Return a text as JSON of Python, JavaScript, Go and PHP write it."""
    plain = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    for_html = {each.translate({60: r"\u003c", 62: r"\u003e", 38: r"\u0026"}) for each in plain}
    return plain | for_html | {each.replace("/", r"\/") for each in plain}


def _base64(data: bytes) -> str:
    """Return the Base64 of data, without the end that depends on what follows it."""
    encoded = base64.b64encode(data).decode()
    return encoded.rstrip("=")[:-1] if encoded.endswith("=") else encoded
