"""Text that every store takes."""

import json
import os

import msgspec
import pytest

from cplane.runtime.text import storable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("naïve ☃ 🂡", "naïve ☃ 🂡"),
        ("a\0b", "a\\0b"),
        ("é\0", "é\\0"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
        ("\ud83d", "\\ud83d"),
        ("", ""),
    ],
)
def test_nul_and_lone_surrogates_are_escaped_and_everything_else_is_unchanged(text: str, expected: str) -> None:
    stored = storable(text)
    assert stored == expected
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stored)) == stored
    assert json.loads(msgspec.json.encode(stored)) == stored
