"""The keyring: encrypts what must not be readable in the database, with AES-256-GCM.

The first key encrypts, all keys decrypt. A ciphertext is bound to a name and cannot be decrypted under another one. The
id of a key is a part of its hash and is stored next to the ciphertext. No message, log line or repr contains key
material.
"""

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from cplane.errors import SecretKeyMissing, SecretUnreadable

KEY_BYTES = 32
NONCE_BYTES = 12

FORMAT = b"\1"
"""First byte of a ciphertext. A nonce of 12 random bytes follows, then AES-256-GCM output with a tag of 16 bytes."""

PURPOSE = b"cplane browser session\0"
"""Authenticated together with the name, so that a ciphertext made for one purpose is useless for another."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A ciphertext and the id of its key."""

    key_id: str
    ciphertext: bytes = field(repr=False)


class Keyring:
    """The keys of CPLANE_SECRET_KEY; without one, every use raises `SecretKeyMissing`.

    Args:
        secret: the keys, as `read_keys` takes them; None for no keys.

    Attributes:
        ids: ids of the keys; the first key encrypts.

    Raises:
        ValueError: a key is malformed.
    """

    def __init__(self, secret: SecretStr | None) -> None:
        keys = () if secret is None else read_keys(secret)
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self.ids = tuple(self._ciphers)

    def __repr__(self) -> str:
        return f"Keyring(ids={self.ids})"

    @property
    def first(self) -> str:
        """Id of the key that encrypts.

        Raises:
            SecretKeyMissing: the keyring has no keys.
        """
        if not self.ids:
            raise SecretKeyMissing(
                "browser sessions need CPLANE_SECRET_KEY, which is not set",
                hint="`cplane secret` prints a new key; give the same one to web and workers",
            )
        return self.ids[0]

    def encrypt(self, plain: bytes, name: str) -> Sealed:
        """Encrypt a text with the first key.

        Args:
            plain: the plaintext.
            name: name that the ciphertext is bound to.

        Raises:
            SecretKeyMissing: the keyring has no keys.
        """
        first, nonce = self.first, secrets.token_bytes(NONCE_BYTES)
        return Sealed(first, FORMAT + nonce + self._ciphers[first].encrypt(nonce, plain, PURPOSE + name.encode()))

    def decrypt(self, sealed: Sealed, name: str) -> bytes:
        """Decrypt a ciphertext.

        Args:
            sealed: the ciphertext and the id of its key.
            name: name that it was encrypted for.

        Returns:
            The plaintext.

        Raises:
            SecretKeyMissing: the keyring has no keys.
            SecretUnreadable: the keyring lacks the key, or the ciphertext was modified or belongs to another name.
        """
        _ = self.first
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise SecretUnreadable(
                f"'{name}' is encrypted with the key {sealed.key_id}, which is not set",
                hint="add that key to CPLANE_SECRET_KEY, after the first one, or delete the session and log in again",
            )
        nonce, body = sealed.ciphertext[1 : 1 + NONCE_BYTES], sealed.ciphertext[1 + NONCE_BYTES :]
        try:
            if sealed.ciphertext[:1] == FORMAT and len(nonce) == NONCE_BYTES:
                return cipher.decrypt(nonce, body, PURPOSE + name.encode())
        except InvalidTag:
            pass
        raise SecretUnreadable(
            f"'{name}' was changed in the database, or belongs to another name",
            hint="delete the session and log in again",
        )


def new_key() -> str:
    """Return a new random key in the format of CPLANE_SECRET_KEY."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def key_id(key: bytes) -> str:
    """Return the id of a key: 12 hexadecimal digits of a hash, which reveal nothing about the key."""
    return hashlib.sha256(b"cplane key id\0" + key).hexdigest()[:12]


def read_keys(secret: SecretStr) -> tuple[bytes, ...]:
    """Read the keys of CPLANE_SECRET_KEY.

    Args:
        secret: keys separated by commas, each 32 bytes in base64, in either alphabet, with or without padding.

    Raises:
        ValueError: a key is malformed, or there is none; the message contains no part of a key.
    """
    parts = [part.strip() for part in secret.get_secret_value().split(",") if part.strip()]
    if not parts:
        raise ValueError("there is no key in it; `cplane secret` prints one")
    return tuple(_read_key(part, number) for number, part in enumerate(parts, 1))


def _read_key(text: str, number: int) -> bytes:
    try:
        padded = text.rstrip("=").translate(str.maketrans("-_", "+/"))
        key = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except (binascii.Error, ValueError):  # the text of these errors contains the key
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"key {number} is not {KEY_BYTES} bytes in base64; `cplane secret` prints one") from None
    return key
