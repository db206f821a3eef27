"""Values that are known to be secrets: where they are found, and that no text keeps them in any writing."""

import base64
import html
import json
import time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplane.runtime.known_secrets import (
    MAX_VALUES,
    NOTHING_KNOWN,
    KnownSecrets,
    in_arguments,
    in_cookies,
    in_storage_state,
    mask_forms,
)

SECRETS = st.text(min_size=6, max_size=40).filter(lambda text: text.strip("*") != "")


@given(SECRETS, st.text(max_size=20), st.text(max_size=20))
def test_a_value_is_masked_as_it_is_and_as_urls_json_and_html_write_it(secret: str, before: str, after: str) -> None:
    known = KnownSecrets([secret])
    for written in (
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        json.dumps({"inner": json.dumps(secret)}),
        quote(secret, safe=""),
        quote_plus(secret),
        html.escape(secret),
        html.escape(secret, quote=False),
        base64.b64encode(secret.encode(errors="replace")).decode(),
        quote(secret.encode(errors="replace"), safe="!'()*~"),  # encodeURIComponent
        quote(secret.encode(errors="replace"), safe="!'()*~;,/?:@&=+$#"),  # encodeURI
        secret.replace("&", "&amp;").replace('"', "&quot;"),  # outerHTML, an attribute
        html.escape(secret).replace("&#x27;", "&apos;"),
        json.dumps(html.escape(secret)),
        json.dumps(secret).replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"),
        json.dumps(secret).replace("/", r"\/"),
        repr(secret),
    ):
        masked = known.mask(f"{before}{written}{after}")
        assert "***" in masked
        assert written not in masked or written in f"{before}***{after}"


def test_the_base64_of_a_value_is_masked_whatever_follows_it() -> None:
    for secret in ("secret", "secret7", "secret78"):
        encoded = base64.b64encode(f"{secret}\nmore".encode()).decode()
        assert encoded[:7] not in KnownSecrets([secret]).mask(encoded)


def test_the_lines_of_a_long_value_are_masked_one_by_one() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----\n"
    masked = KnownSecrets([key]).mask("the line 9w0BAQEFAASCBKcwggSj is wrong; -----BEGIN PRIVATE KEY----- is missing")
    assert masked == "the line *** is wrong; -----BEGIN PRIVATE KEY----- is missing"


def test_longer_values_are_replaced_first_and_short_ones_not_at_all() -> None:
    known = KnownSecrets(["secret", "secret-and-more", "short"])
    assert known.mask("secret-and-more, secret, short") == "***, ***, short"
    assert not KnownSecrets(["short", ""])
    assert not NOTHING_KNOWN
    assert NOTHING_KNOWN.mask("text") == "text"


def test_neither_its_representation_nor_a_copy_for_another_process_needs_the_values_shown() -> None:
    known = KnownSecrets(["hunter22"])
    assert repr(known) == "<KnownSecrets: 1>"
    assert repr(known | ["hunter33"]) == "<KnownSecrets: 2>"
    assert mask_forms("hunter22 and hunter33", (known | ["hunter33"]).forms) == "*** and ***"


def test_the_secrets_of_arguments_are_found_by_name_in_cookies_headers_and_urls() -> None:
    arguments: dict[str, Any] = {
        "url": "https://me:pa%40ssword@site.example/?token=tok-98765&page=2#access_token=frag-123",
        "session": "shop-of-jane",
        "cookies": [{"name": "theme", "value": "darkmode"}],
        "extra_http_headers": {
            "Authorization": "Bearer s3cr3t-bearer",
            "Proxy-Authorization": "Basic bWU6aHVudGVyMjI=",
            "Cookie": "a=first-cookie; b=second-cookie",
            "Accept": "text/html",
        },
        "authenticate": {"username": "me", "password": "hunter22"},
        "steps": [{"selector": "#password", "value": "typed-secret"}, {"selector": "#q", "value": "green shoes"}],
        "nested": [{"api_key": ["key-one-1", "key-two-2"]}],
        "number": 5,
        "token": {"inner": "inner-secret", "pin": 123456},
        "headers": [["X-Api-Key", "pair-secret"]],
        "path": "/page?access_token=relative-secret",
    }
    expected = {
        "pa@ssword", "tok-98765", "frag-123", "darkmode", "Bearer s3cr3t-bearer", "s3cr3t-bearer", "first-cookie",
        "Basic bWU6aHVudGVyMjI=", "bWU6aHVudGVyMjI=", "second-cookie", "hunter22", "typed-secret", "key-one-1", "key-two-2",
        "inner-secret", "123456", "pair-secret", "relative-secret",
    }  # fmt: skip
    assert set(in_arguments(arguments)) == expected


def test_a_session_has_the_secrets_of_its_cookies_and_named_entries_but_no_plain_words() -> None:
    state: dict[str, Any] = {
        "cookies": [
            {"name": "sid", "value": "a1b2c3d4"},
            {"name": "layout", "value": "desktop"},
            {"name": "seen", "value": "1234567"},
            {"name": "csrf", "value": "plainword"},
            {"name": "id", "value": "onlyletters", "httpOnly": True},
            {"name": "long", "value": "x" * 20},
        ],
        "origins": [
            {
                "origin": "https://a.example",
                "localStorage": [{"name": "token", "value": "stored"}, {"name": "n", "value": "v"}],
            }
        ],
    }
    assert set(in_storage_state(state)) == {"a1b2c3d4", "plainword", "onlyletters", "x" * 20, "stored"}
    assert list(in_cookies([{"name": "empty"}])) == [""]


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        "text",
        {"url": "http://[broken/?token=value-1"},
        {"password": None, "token": 5, "cookies": "a", "headers": {"Authorization": "Basic !!!"}},
        {"password": "\ud800lone surrogate"},
    ],
)
def test_arguments_of_any_shape_are_looked_at(arguments: object) -> None:
    assert isinstance(KnownSecrets(in_arguments(arguments)).mask("text"), str)


def test_texts_anywhere_in_a_value_of_a_log_line_are_masked() -> None:
    known = KnownSecrets(["hunter22"])
    assert known.mask_any({"h": ["hunter22", ("x", 5)], "n": None}) == {"h": ["***", ["x", 5]], "n": None}
    assert known.mask_any(ValueError("hunter22")) == "ValueError('***')"


def test_what_a_cut_left_of_a_value_is_masked() -> None:
    known = KnownSecrets(["hunter2-known-longer"])
    assert known.mask_cut("text hunter2-kn", "[cut]") == "text ***"
    assert known.mask_cut("text hunter2-[cut]n-longer hunter2-known-longer", "[cut]") == "text ***[cut]*** ***"
    assert known.mask_cut("nothing left", "[cut]") == "nothing left"


def test_hostile_arguments_take_a_bounded_time() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = {"password": [deep]}
    many = {"token": [f"value-{number:06}" for number in range(200_000)]}
    began = time.process_time()
    assert not KnownSecrets(in_arguments(deep))
    known = KnownSecrets(in_arguments(many))
    assert repr(known) == f"<KnownSecrets: {MAX_VALUES}>"
    known.mask("text " * 200_000)
    large = {"token": ["x" * 1_000_000, *("y" * 40 + f"{n}\n" * 50_000 for n in range(3))], "key": "a\n" * 600_000}
    assert len(KnownSecrets(in_arguments(large)).forms) < 5_000
    assert time.process_time() - began < 5
