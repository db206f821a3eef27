"""A ciphertext is decrypted with its key and under its name only, and no key is ever shown."""

import base64
import secrets
import traceback

import pytest
from pydantic import SecretStr

from cplane.errors import InvalidSettings, SecretKeyMissing, SecretUnreadable
from cplane.keyring import Keyring, Sealed, key_id, new_key, read_keys
from cplane.settings import load_settings

OLD, NEW = new_key(), new_key()
PLAIN = b'{"cookies":[{"value":"hunter2"}]}'


def ring(*keys: str) -> Keyring:
    return Keyring(SecretStr(",".join(keys)))


def test_a_plaintext_survives_encryption_and_no_two_ciphertexts_are_equal() -> None:
    first, second = (ring(NEW).encrypt(PLAIN, "shop") for _ in range(2))
    assert ring(NEW).decrypt(first, "shop") == ring(NEW).decrypt(second, "shop") == PLAIN
    assert first.ciphertext != second.ciphertext
    assert b"hunter2" not in first.ciphertext
    assert first.key_id == ring(NEW).first


def test_the_first_key_encrypts_and_all_keys_decrypt() -> None:
    old = ring(OLD).encrypt(PLAIN, "shop")
    both = ring(NEW, OLD)
    assert both.decrypt(old, "shop") == PLAIN
    assert both.encrypt(PLAIN, "shop").key_id == ring(NEW).first != old.key_id
    with pytest.raises(
        SecretUnreadable, match=rf"'shop' is encrypted with the key {old.key_id}, which is not set"
    ) as caught:
        ring(NEW).decrypt(old, "shop")
    assert caught.value.hint


def test_a_wrong_key_under_the_id_of_the_right_one_decrypts_nothing() -> None:
    sealed = ring(OLD).encrypt(PLAIN, "shop")
    with pytest.raises(SecretUnreadable, match="was changed"):
        ring(NEW).decrypt(Sealed(ring(NEW).first, sealed.ciphertext), "shop")


def test_a_ciphertext_that_was_modified_or_moved_to_another_name_is_refused() -> None:
    keys = ring(NEW)
    sealed = keys.encrypt(PLAIN, "shop")
    for index in range(len(sealed.ciphertext)):
        modified = bytearray(sealed.ciphertext)
        modified[index] ^= 1
        with pytest.raises(SecretUnreadable):
            keys.decrypt(Sealed(sealed.key_id, bytes(modified)), "shop")
    for length in (0, 1, 12, 13, 20, len(sealed.ciphertext) - 1):
        with pytest.raises(SecretUnreadable):
            keys.decrypt(Sealed(sealed.key_id, sealed.ciphertext[:length]), "shop")
    with pytest.raises(SecretUnreadable, match="'bank' was changed in the database, or belongs to another name"):
        keys.decrypt(sealed, "bank")


def test_without_a_key_the_error_says_what_to_do() -> None:
    with pytest.raises(SecretKeyMissing, match="CPLANE_SECRET_KEY") as caught:
        Keyring(None).encrypt(b"", "shop")
    assert "cplane secret" in str(caught.value.hint)
    with pytest.raises(SecretKeyMissing):
        Keyring(None).decrypt(Sealed("x", b""), "shop")


def test_keys_are_read_in_either_base64_alphabet_with_or_without_padding() -> None:
    key = b"\xfb\xff" * 16
    texts = [encode(key).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    assert texts[0] != texts[1]
    for text in (*texts, *(text.rstrip("=") for text in texts), f" {texts[0]} , "):
        assert read_keys(SecretStr(text)) == (key,)
    assert read_keys(SecretStr(new_key()))[0] != read_keys(SecretStr(new_key()))[0]


@pytest.mark.parametrize(
    "wrong",
    [
        base64.b64encode(secrets.token_bytes(16)).decode(),
        base64.b64encode(secrets.token_bytes(33)).decode(),
        "correct horse battery staple",
        "pässword",
        "A" * 40 + "!!!",
    ],
    ids=("short", "long", "words", "not ASCII", "not base64"),
)
def test_a_malformed_key_is_named_by_its_number_and_not_shown(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("CPLANE_SECRET_KEY", f"{OLD},{wrong}")
    with pytest.raises(InvalidSettings, match="CPLANE_SECRET_KEY: key 2 is not 32 bytes in base64") as caught:
        load_settings(database_url="postgresql://", redis_url="redis://")
    shown = "".join(traceback.format_exception(caught.value))
    assert wrong not in shown
    assert OLD not in shown


def test_a_setting_of_only_commas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPLANE_SECRET_KEY", " , ")
    with pytest.raises(InvalidSettings, match="CPLANE_SECRET_KEY: there is no key in it"):
        load_settings(database_url="postgresql://", redis_url="redis://")


def test_no_repr_or_dump_shows_a_key_or_a_plaintext() -> None:
    settings = load_settings(database_url="postgresql://", redis_url="redis://", secret_key=f"{NEW},{OLD}")
    keys = Keyring(settings.secret_key)
    sealed = keys.encrypt(PLAIN, "shop")
    shown = repr((settings, keys, sealed)) + settings.model_dump_json() + str(settings)
    for secret in (NEW, OLD, NEW.rstrip("="), "hunter2"):
        assert secret not in shown
    assert repr(sealed.ciphertext) not in shown
    assert keys.ids == tuple(key_id(base64.urlsafe_b64decode(key)) for key in (NEW, OLD))
