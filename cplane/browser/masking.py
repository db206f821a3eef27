"""Masks what looks like a secret in URLs, headers, texts, HTML and Playwright's traces. Pure functions."""

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from cplane.runtime.known_secrets import MASK, SECRET_NAME, in_json, mask_forms

MAX_TEXT_BYTES = 2 * 1024 * 1024
"""Larger texts are left out of a trace."""
CHUNK_CHARS = 16 * 1024
"""A longer text is masked in chunks: while a regular expression is matched, no other thread runs."""

# Pages are hostile: every repetition in these expressions is bounded, or ends where the next attempt begins, so that
# the matching time is linear in the length of the text.

NAMED = re.compile(
    r"""(?P<name>(?:passw|passphrase|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|session|csrf|xsrf|authorization|cookie|credential|signature)[\w.-]{0,64})"""
    r"""(?P<between>\\?["']?\s*[:=]\s*\\?["']?)(?P<value>(?:(?:Bearer|Basic|Digest)\s+)?[^\s"'&;,<>\\{}\[\]]{2,})""",
    re.IGNORECASE,
)
COOKIES = re.compile(
    r"""(?P<name>\b(?:set-)?cookies?)(?P<between>\\?["']?\s{0,8}(?::\s{0,8}\\?["']?|=\s{0,8}\\?["']))(?:[^=;\s"'\\<>]{1,64};\s?){0,4}[^=;\s"'\\<>]{1,256}=[^\r\n"'\\<>]{0,8192}""",
    re.IGNORECASE,
)
"""A header or a script with cookies: all of them are masked, not only the first."""
COOKIE_HEADER = re.compile(
    r"^(?P<name>(?:set-)?cookie:[ \t]{0,8})[^\r\n=]{0,512}=[^\r\n]{0,16384}", re.IGNORECASE | re.MULTILINE
)
"""The same in a line that begins with the header, where quotes and angle brackets do not end it."""
SCHEMES = re.compile(r"\b(Bearer|Basic|Digest)\s+[A-Za-z0-9+/=._~-]{6,}", re.IGNORECASE)
JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{5,2048}\.[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]*)?")
USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,19}://)[^\s/@:]{1,256}:[^\s/@]{1,1024}@", re.IGNORECASE)
INPUT = re.compile(r"<input\b[^>]{0,8192}>", re.IGNORECASE)
VALUE = re.compile(r"""(\bvalue\s*=\s*)("[^"]*"|'[^']*'|[^\s>]+)""", re.IGNORECASE)
TEXTAREA = re.compile(r"(?P<tag><textarea\b[^>]{0,1024}>)(?P<text>[^<]{1,65536})", re.IGNORECASE)
BINARY = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"wOFF", b"wOF2", b"OTTO", b"%PDF", b"PK", b"\x1f\x8b")
"""How images, fonts, documents and archives begin."""
VALUE_KEYS = ("value", "__playwright_value_", "text")
TYPING_CALL = re.compile(r"""\b(fill|type|press|insertText|pressSequentially)\((".{0,2048}?"|'.{0,2048}?')\)""")
"""A call that types text, as Playwright logs it."""
TYPING_METHODS = frozenset({"fill", "type", "press", "keyboardType", "keyboardInsertText", "keyboardPress"})
"""Calls that type text. Their field is not known here, so all text is masked; named keys, such as Enter, are not."""


def mask_url(url: str) -> str:
    """Mask the credentials of a URL, and the values of parameters whose names look secret."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return mask_text(url)
    if parts.scheme in {"data", "blob"}:
        return url[:100]
    netloc = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{netloc}" if "@" in parts.netloc else netloc
    if any(SECRET_NAME.search(name) for name, _ in query):
        pairs = ((name, MASK if SECRET_NAME.search(name) else quote(value, safe="")) for name, value in query)
        parts = parts._replace(query="&".join(f"{quote(name, safe='')}={value}" for name, value in pairs))
    return mask_text(urlunsplit(parts._replace(netloc=netloc)))


def mask_text(text: str) -> str:
    """Mask in a text what looks like a token, like the value of a secret, or like text typed into a field."""
    return "".join(_mask_chunk(chunk) for chunk in _chunks(text)) if len(text) > CHUNK_CHARS else _mask_chunk(text)


def _chunks(text: str) -> Iterator[str]:
    """Split a long text where no secret can be: before a tag, otherwise after a character that ends a value."""
    start = 0
    while len(text) - start > CHUNK_CHARS:
        end = start + CHUNK_CHARS
        cut = text.rfind("<", start + 1, end)
        if cut < 0:
            cut = max(text.rfind(sign, start, end) for sign in ",\n;&") + 1
        yield text[start : (start := cut if cut > start else end)]
    yield text[start:]


def _mask_chunk(text: str) -> str:
    text = INPUT.sub(_mask_field, text)
    text = TEXTAREA.sub(_mask_textarea, text)
    text = COOKIE_HEADER.sub(rf"\g<name>{MASK}", text)
    text = COOKIES.sub(rf"\g<name>\g<between>{MASK}", text)
    text = TYPING_CALL.sub(rf'\1("{MASK}")', text)
    text = JWT.sub(MASK, text)
    text = USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    text = NAMED.sub(rf"\g<name>\g<between>{MASK}", text)
    return SCHEMES.sub(rf"\1 {MASK}", text)


def _mask_field(found: re.Match[str]) -> str:
    """Mask the value of a password field, or of a hidden field that looks like a token."""
    field = found.group()
    field_type = re.search(r"""type\s*=\s*["']?(password|hidden)""", field, re.IGNORECASE)
    secret = field_type is not None and (field_type.group(1).lower() == "password" or SECRET_NAME.search(field))
    return VALUE.sub(rf'\1"{MASK}"', field) if secret else field


def _mask_textarea(found: re.Match[str]) -> str:
    """Mask the text of a textarea whose tag looks like that of a secret."""
    return f"{found['tag']}{MASK}" if SECRET_NAME.search(found["tag"]) else found.group()


def mask_value(value: Any) -> Any:
    """Mask a JSON value of a trace."""
    if isinstance(value, str):
        return mask_text(value)
    if is_list(value):
        if value[:1] in (["TEXTAREA"], ["textarea"]) and _is_secret_element(value[1:2]):  # name, attributes, children
            return [value[0], *(MASK if isinstance(item, str) else mask_value(item) for item in value[1:])]
        return [mask_value(item) for item in value]
    if isinstance(value, dict):
        return _mask_object(cast("dict[str, Any]", value))
    return value


def _mask_object(value: dict[str, Any]) -> dict[str, Any]:
    """Mask the value of a header, cookie, field or call if its name, type or selector looks secret."""
    if value.get("method") in TYPING_METHODS and isinstance(params := value.get("params"), dict):
        typed = cast("dict[str, Any]", params)
        masked = {key: _mask_typed(key, item) for key, item in typed.items()}
        return {**mask_members(value, "params"), "params": mask_value(masked)}
    names = [value.get(key) for key in ("name", "selector", "id", "autocomplete")]
    secret = any(isinstance(name, str) and SECRET_NAME.search(name) for name in names)
    keys = [key for key in VALUE_KEYS if key in value] if secret or value.get("type") in {"password", "hidden"} else []
    return {**mask_members(value, *keys), **dict.fromkeys(keys, MASK)}


def _is_secret_element(attributes: list[Any]) -> bool:
    """Return whether the attributes of an element, if there are any, look like those of a secret."""
    return any(isinstance(each, dict) and SECRET_NAME.search(json.dumps(each)) is not None for each in attributes)


def _mask_typed(key: str, item: Any) -> Any:
    secret = key in {"value", "text"} or (key == "key" and isinstance(item, str) and len(item) == 1)
    return MASK if secret else item


def mask_members(value: dict[str, Any], *omit: str) -> dict[str, Any]:
    """Mask the members of an object by their names; leave out those to omit."""
    return {key: _mask_member(key, item) for key, item in value.items() if key not in omit}


def _mask_member(key: str, item: Any) -> Any:
    if key == "storageState":
        return None
    if key == "cookies" and is_list(item):
        return [{**cookie, "value": MASK} if isinstance(cookie, dict) else MASK for cookie in item]
    if isinstance(item, str):
        if key.lower().endswith("url"):
            return mask_url(item)
        return (
            MASK if item and SECRET_NAME.search(key) and key not in {"sessionId", "monotonicTime"} else mask_text(item)
        )
    return mask_value(item)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Return whether a JSON value is a list."""
    return isinstance(value, list)


def mask_page(text: str, known: Sequence[str] = ()) -> str:
    """Mask a page, or any text. It blocks for about 0.1 s per MB.

    Args:
        text: the text.
        known: forms of values that are known to be secrets, as `KnownSecrets.forms` has them.
    """
    return mask_text(mask_forms(text, known))


def mask_trace(source: str, target: str, max_bytes: int, known: Sequence[str] = ()) -> bool:
    """Write a masked copy of a trace. It blocks for long.

    Args:
        source: path of the trace, a ZIP file.
        target: path of the copy.
        max_bytes: maximum size of `source`.
        known: forms of values that are known to be secrets, as `KnownSecrets.forms` has them.

    Returns:
        False if the trace is larger, and was not written.
    """
    if Path(source).stat().st_size > max_bytes:
        return False
    in_lines = in_json(known)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if (data := _mask_entry(entry.filename, old.read(entry), known, in_lines)) is not None:
                new.writestr(entry.filename, data)
    return True


def _mask_entry(name: str, data: bytes, known: Sequence[str], in_lines: Sequence[str]) -> bytes | None:
    encoding = _encoding(data)
    if encoding is None:
        return data
    text = data.decode(encoding, "surrogateescape")
    if name.endswith((".trace", ".network", ".stacks")):
        return "\n".join(_mask_line(line, known, in_lines) for line in text.split("\n")).encode()
    if len(data) > MAX_TEXT_BYTES:
        return None
    return mask_page(text, known).encode(encoding, "surrogateescape")


def _encoding(data: bytes) -> str | None:
    """Return the encoding of a text; None: it is an image, a font or other binary data."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in data[:4096] or data.startswith(BINARY):
        return None
    try:
        data.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _mask_line(line: str, known: Sequence[str], in_lines: Sequence[str]) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        return mask_page(line, known)
    return mask_forms(json.dumps(mask_value(value), separators=(",", ":")), in_lines)
