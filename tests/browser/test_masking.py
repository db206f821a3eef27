"""What looks like a secret is masked; everything else is unchanged."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplane.browser.masking import CHUNK_CHARS, mask_text, mask_trace, mask_url, mask_value
from cplane.runtime.known_secrets import KnownSecrets

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijk"
WORDS = st.text(alphabet="abcdefghijkmnopqrstuvwxyz0123456789", min_size=6, max_size=20).map(lambda text: f"q9{text}")


@given(WORDS)
def test_secrets_in_urls_are_masked(secret: str) -> None:
    for url in (
        f"https://user:{secret}@site.example/a",
        f"https://site.example/?access_token={secret}&page=2",
        f"https://site.example/?page=2&Session-Id={secret}",
        f"https://site.example/#access_token={secret}",
    ):
        assert secret not in mask_url(url)


@pytest.mark.parametrize(
    "url", ["https://site.example/a?page=2&q=x%20y#top", "http://127.0.0.1:80/", "about:blank", "", "http://[bad"]
)
def test_urls_without_secrets_are_unchanged(url: str) -> None:
    assert mask_url(url) == url


@given(WORDS)
def test_secrets_in_texts_are_masked(secret: str) -> None:
    for text in (
        f"password={secret}",
        f'{{"api_key": "{secret}", "a": 1}}',
        f"Authorization: Bearer {secret}",
        f"Cookie: sid={secret}",
        f"csrf-token: {secret}\nnext",
        f'"{{\\"refresh_token\\": \\"{secret}\\"}}"',
    ):
        assert secret not in mask_text(text), text
    assert JWT not in mask_text(f"got {JWT} back")
    assert "hunter2" not in mask_text('  fill("hunter2")')


@pytest.mark.parametrize(
    "text",
    [
        "Cookie: a=hunter2; theme=dark; sid=s3cr3t-value\nAccept: text/html",
        "set-cookie: sid=s3cr3t-value; Path=/; other=hunter2",
        '{"cookie": "a=hunter2; b=s3cr3t-value", "accept": "text/html"}',
        '"{\\"Cookie\\": \\"a=hunter2; b=s3cr3t-value\\"}"',
        "document.cookie = 'a=hunter2; b=s3cr3t-value'",
        'GET /\nCookie: a="q;hunter2"; b=s3cr3t-value\nAccept: text/html',
        "Cookie: flag; a=1<hunter2; b=s3cr3t-value",
        '{"cookie": "flag; a=hunter2; b=s3cr3t-value"}',
    ],
)
def test_all_cookies_of_a_header_are_masked(text: str) -> None:
    masked = mask_text(text)
    assert "hunter2" not in masked
    assert "s3cr3t-value" not in masked
    assert ("text/html" in masked) is ("text/html" in text)


def test_the_text_of_a_textarea_with_a_secret_name_is_masked() -> None:
    html = "<textarea name=api_key rows=3>hunter2\nand more</textarea><textarea name=comment>nice shoes</textarea>"
    assert mask_text(html) == "<textarea name=api_key rows=3>***</textarea><textarea name=comment>nice shoes</textarea>"
    snapshot = [["TEXTAREA", {"id": "private-key"}, "hunter2"], ["TEXTAREA", {"id": "comment"}, "nice shoes"]]
    assert mask_value(snapshot) == [["TEXTAREA", {"id": "private-key"}, "***"], snapshot[1]]


def test_a_trace_is_masked_whatever_the_encoding_of_a_text_and_the_breaks_within_its_lines(tmp_path: Path) -> None:
    source, target = tmp_path / "recorded.zip", tmp_path / "masked.zip"
    event = {"method": "fill", "params": {"selector": "#a\u2028b", "value": "typed-secret"}}
    entries = {
        "trace.trace": json.dumps(event, ensure_ascii=False).encode() + b'\n{"text":"caf\xc3\xa9 hunter2-known"}',
        "resources/latin.html": "caf\xe9 hunter2-known".encode("latin-1"),
        "resources/wide.html": "caf\xe9 hunter2-known".encode("utf-16"),
        "resources/picture.png": b"\x89PNG\r\n\x1a\n\0\0",
    }
    with zipfile.ZipFile(source, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert mask_trace(str(source), str(target), 10**6, KnownSecrets(["hunter2-known"]).forms)
    with zipfile.ZipFile(target) as archive:
        masked = {name: archive.read(name) for name in archive.namelist()}
    assert masked.keys() == entries.keys()
    assert masked["resources/latin.html"].decode("latin-1") == "caf\xe9 ***"
    assert masked["resources/wide.html"].decode("utf-16") == "caf\xe9 ***"
    assert masked["resources/picture.png"] == entries["resources/picture.png"]
    lines = [json.loads(line) for line in masked["trace.trace"].decode().split("\n")]
    assert lines == [{**event, "params": {"selector": "#a\u2028b", "value": "***"}}, {"text": "caf\xe9 ***"}]


def test_texts_without_secrets_are_unchanged() -> None:
    for text in (
        "cookie=",
        "page 2 of 3",
        "no element 'h1' became visible within 30 s",
        "price: 12 EUR",
        "a = b",
    ):
        assert mask_text(text) == text


def test_password_fields_and_hidden_tokens_are_masked_in_html() -> None:
    html = "<input type=password value='hunter2'><input type=hidden name=csrf value=\"abc123\"><input name=q value='shoes'>"
    masked = mask_text(html)
    assert "hunter2" not in masked
    assert "abc123" not in masked
    assert "shoes" in masked


def test_trace_objects_are_masked_by_the_names_of_their_members() -> None:
    value: dict[str, Any] = {
        "headers": [{"name": "Authorization", "value": "Basic abc123xyz"}, {"name": "Accept", "value": "text/html"}],
        "cookies": [{"name": "a", "value": "c00kie"}],
        "httpCredentials": {"username": "me", "password": "hunter2"},
        "storageState": {"cookies": []},
        "params": {"selector": "#password", "value": "hunter2"},
        "url": "https://u:hunter2@site.example/",
        "node": ["INPUT", {"type": "password", "__playwright_value_": "hunter2"}],
        "time": 12.5,
    }
    masked = mask_value(value)
    assert "hunter2" not in json.dumps(masked)
    assert "c00kie" not in json.dumps(masked)
    assert "abc123xyz" not in json.dumps(masked)
    assert masked["headers"][1] == {"name": "Accept", "value": "text/html"}
    assert masked["time"] == 12.5


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_masked_json_is_json(value: object) -> None:
    json.dumps(mask_value(value))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("fill", {"selector": "input", "value": "hunter2"}),
        ("type", {"selector": "#field", "text": "hunter2", "delay": 10}),
        ("keyboardType", {"text": "hunter2"}),
        ("keyboardInsertText", {"text": "hunter2"}),
    ],
)
def test_typed_text_is_masked_whatever_the_name_of_its_field(method: str, params: dict[str, Any]) -> None:
    masked = mask_value({"type": "before", "method": method, "params": params})
    assert "hunter2" not in json.dumps(masked)
    assert masked["params"].keys() == params.keys()
    assert masked["params"].get("selector") == params.get("selector")


def test_pressed_keys_are_masked_unless_they_are_named_keys() -> None:
    pressed = [{"method": "press", "params": {"selector": "input", "key": key}} for key in ("Enter", "x")]
    assert [mask_value(call)["params"]["key"] for call in pressed] == ["Enter", "***"]


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "eyJ",
        "-eyJaaaaa",
        "a.",
        "a:",
        "http://a:",
        "<input ",
        "token",
        "token ",
        'fill("',
        "Basic ",
        "a.-_",
        "password=",
        "<textarea ",
        "<textarea>",
        "cookie:",
        "cookie: a",
        "cookie: a=",
        "cookie ",
        "cookie: a;",
        "\nCookie: a",
    ],
)
def test_masking_takes_linear_time(part: str) -> None:
    """A regular expression with quadratic time would take hours for these texts, which a hostile page can contain."""
    text = part * (500_000 // len(part))
    assert len(mask_text(text)) <= len(text) * 2


@pytest.mark.parametrize("filler", ["<p>word</p>", '"name": "value", ', "words and words\n"])
def test_secrets_in_a_long_text_are_masked_across_chunks(filler: str) -> None:
    secrets = ['<input type="password" value="hunter2">', '"password":"hunter2",', "token=hunter2&"]
    for shift in range(0, 200, 23):
        text = "x" * shift + "".join(filler * 37 + secrets[number % 3] for number in range(300))
        assert len(text) > 4 * CHUNK_CHARS
        assert "hunter2" not in mask_text(text)
