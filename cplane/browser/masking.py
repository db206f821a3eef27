"""What looks like a secret is replaced before it is kept: in addresses, headers, texts, HTML and Playwright's traces. Pure functions."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard, cast
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

MASK = "***"
LONGEST_TEXT = 2 * 1024 * 1024
"""Larger texts in a trace are left out of it."""
PIECE = 16 * 1024
"""A longer text is masked piece by piece: while an expression is matched, no other thread runs."""

# Pages are hostile: every run of characters in these expressions is bounded, or ends where the next attempt begins, so that the time they take
# grows as the text does.

SECRET_NAME = re.compile(
    r"pass(wd|word|phrase|code)?\b|passw|pwd|secret|token|api[-_]?key|apikey|access[-_]?key|private[-_]?key|session|sess?id|csrf|xsrf|auth|"
    r"cookie|credential|signature|\bsig\b|\botp\b|\bpin\b|\bjwt\b|bearer",
    re.IGNORECASE,
)
"""Names of headers, parameters, fields and elements whose values are not shown."""

NAMED = re.compile(
    r"""(?P<name>(?:passw|passphrase|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|session|csrf|xsrf|authorization|cookie|credential|signature)[\w.-]{0,64})"""
    r"""(?P<between>\\?["']?\s*[:=]\s*\\?["']?)(?P<value>(?:(?:Bearer|Basic|Digest)\s+)?[^\s"'&;,<>\\{}\[\]]{2,})""",
    re.IGNORECASE,
)
SCHEMES = re.compile(r"\b(Bearer|Basic|Digest)\s+[A-Za-z0-9+/=._~-]{6,}", re.IGNORECASE)
JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{5,2048}\.[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]*)?")
USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,19}://)[^\s/@:]{1,256}:[^\s/@]{1,1024}@", re.IGNORECASE)
INPUT = re.compile(r"<input\b[^>]{0,8192}>", re.IGNORECASE)
VALUE = re.compile(r"""(\bvalue\s*=\s*)("[^"]*"|'[^']*'|[^\s>]+)""", re.IGNORECASE)
HOLDERS = ("value", "__playwright_value_", "text")
ENTERED = re.compile(r"""\b(fill|type|press|insertText|pressSequentially)\((".{0,2048}?"|'.{0,2048}?')\)""")
"""As Playwright's own log of a call tells it."""
ENTERING = frozenset({"fill", "type", "press", "keyboardType", "keyboardInsertText", "keyboardPress"})
"""Calls that enter text. Which field it goes to is not known by then, so none of it is shown; keys with a name, such as Enter, are."""


def mask_url(url: str) -> str:
    """An address without credentials, and without the values of parameters whose names say that they are secret."""
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
    """A text without what looks like a token, like a secret's name with its value, or like what was entered into a field."""
    return "".join(_mask_piece(piece) for piece in _pieces(text)) if len(text) > PIECE else _mask_piece(text)


def _pieces(text: str) -> Iterator[str]:
    """Pieces of a long text, parted where no secret can be: before a tag, else after a character that ends a value."""
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        cut = text.rfind("<", start + 1, end)
        if cut < 0:
            cut = max(text.rfind(sign, start, end) for sign in ",\n;&") + 1
        yield text[start : (start := cut if cut > start else end)]
    yield text[start:]


def _mask_piece(text: str) -> str:
    text = INPUT.sub(_mask_field, text)
    text = ENTERED.sub(rf'\1("{MASK}")', text)
    text = JWT.sub(MASK, text)
    text = USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    text = NAMED.sub(rf"\g<name>\g<between>{MASK}", text)
    return SCHEMES.sub(rf"\1 {MASK}", text)


def _mask_field(found: re.Match[str]) -> str:
    """A field for a password, or a hidden one that looks like a token, without its value."""
    field = found.group()
    kind = re.search(r"""type\s*=\s*["']?(password|hidden)""", field, re.IGNORECASE)
    secret = kind is not None and (kind.group(1).lower() == "password" or SECRET_NAME.search(field))
    return VALUE.sub(rf'\1"{MASK}"', field) if secret else field


def mask_value(value: Any) -> Any:
    """A value of JSON as it stands in a trace."""
    if isinstance(value, str):
        return mask_text(value)
    if _is_list(value):
        return [mask_value(item) for item in value]
    if isinstance(value, dict):
        return _mask_object(cast("dict[str, Any]", value))
    return value


def _mask_object(value: dict[str, Any]) -> dict[str, Any]:
    """A header, a cookie, a field, a call: what it holds is masked when its name, its kind or its selector says that it is secret."""
    if value.get("method") in ENTERING and isinstance(params := value.get("params"), dict):
        entered = cast("dict[str, Any]", params)
        shown = {key: _mask_entered(key, item) for key, item in entered.items()}
        return {**mask_rest(value, "params"), "params": mask_value(shown)}
    said = [value.get(key) for key in ("name", "selector", "id", "autocomplete")]
    named = any(isinstance(text, str) and SECRET_NAME.search(text) for text in said)
    held = [key for key in HOLDERS if key in value] if named or value.get("type") in {"password", "hidden"} else []
    return {**mask_rest(value, *held), **dict.fromkeys(held, MASK)}


def _mask_entered(key: str, item: Any) -> Any:
    secret = key in {"value", "text"} or (key == "key" and isinstance(item, str) and len(item) == 1)
    return MASK if secret else item


def mask_rest(value: dict[str, Any], *but: str) -> dict[str, Any]:
    """The members of an object, each by its name."""
    return {key: _mask_member(key, item) for key, item in value.items() if key not in but}


def _mask_member(key: str, item: Any) -> Any:
    if key == "storageState":
        return None
    if key == "cookies" and _is_list(item):
        return [{**cookie, "value": MASK} if isinstance(cookie, dict) else MASK for cookie in item]
    if isinstance(item, str):
        if key.lower().endswith("url"):
            return mask_url(item)
        return (
            MASK if item and SECRET_NAME.search(key) and key not in {"sessionId", "monotonicTime"} else mask_text(item)
        )
    return mask_value(item)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def mask_trace(source: Path, target: Path, most_bytes: int) -> bool:
    """Write a trace anew, masked; False: it is larger than `most_bytes`, and was not written. Blocks: call it in a thread."""
    if source.stat().st_size > most_bytes:
        return False
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if (data := _mask_entry(entry.filename, old.read(entry))) is not None:
                new.writestr(entry.filename, data)
    return True


def _mask_entry(name: str, data: bytes) -> bytes | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data  # a picture, a font: nothing to read
    if name.endswith((".trace", ".network", ".stacks")):
        return "\n".join(_mask_line(line) for line in text.splitlines()).encode()
    if len(data) > LONGEST_TEXT:
        return None
    return mask_text(text).encode()


def _mask_line(line: str) -> str:
    try:
        return json.dumps(mask_value(json.loads(line)), separators=(",", ":"))
    except ValueError:
        return mask_text(line)
