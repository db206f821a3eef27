"""The keys that encrypt what must not be read in the database: AES-256-GCM, the first key encrypts, all of them decrypt.

What is encrypted belongs to a name: under another name it cannot be decrypted. A key is known by its id, a part of its hash,
which is kept beside what it encrypted. Key material is in no message, log line or repr.
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
"""The first byte of what is encrypted: a nonce of 12 random bytes follows, then AES-256-GCM with its tag of 16 bytes."""

PURPOSE = b"cplane browser session\0"
"""Authenticated with the name: what was encrypted for one purpose is of no use for another."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was encrypted, and the id of its key."""

    key_id: str
    ciphertext: bytes = field(repr=False)


class Keyring:
    """The keys of CPLANE_SECRET_KEY; without one, every use raises SecretKeyMissing."""

    def __init__(self, secret: SecretStr | None) -> None:
        keys = () if secret is None else read_keys(secret)
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self.ids = tuple(self._ciphers)
        """The ids of the keys; the first encrypts."""

    def __repr__(self) -> str:
        return f"Keyring(ids={self.ids})"

    @property
    def first(self) -> str:
        """The id of the key that encrypts.

        Raises:
            SecretKeyMissing: there is none.
        """
        if not self.ids:
            raise SecretKeyMissing(
                "browser sessions need CPLANE_SECRET_KEY, which is not set",
                hint="`cplane secret` prints a new key; give the same one to web and workers",
            )
        return self.ids[0]

    def encrypt(self, plain: bytes, name: str) -> Sealed:
        """Encrypt with the first key, for `name` alone.

        Raises:
            SecretKeyMissing: there is none.
        """
        first, nonce = self.first, secrets.token_bytes(NONCE_BYTES)
        return Sealed(first, FORMAT + nonce + self._ciphers[first].encrypt(nonce, plain, PURPOSE + name.encode()))

    def decrypt(self, sealed: Sealed, name: str) -> bytes:
        """Decrypt what was encrypted for `name`.

        Raises:
            SecretKeyMissing: there is no key.
            SecretUnreadable: its key is not among ours, or it was changed, or belongs to another name.
        """
        _ = self.first
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise SecretUnreadable(
                f"'{name}' is encrypted with the key {sealed.key_id}, which is not set",
                hint="add that key to CPLANE_SECRET_KEY, behind the first, or delete the session and log in again",
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
    """A new key as CPLANE_SECRET_KEY takes it."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def key_id(key: bytes) -> str:
    """What a key is known by: it tells nothing of the key."""
    return hashlib.sha256(b"cplane key id\0" + key).hexdigest()[:12]


def read_keys(secret: SecretStr) -> tuple[bytes, ...]:
    """The keys in a text: comma between two, each 32 bytes in base64, of either alphabet, padded or not.

    Raises:
        ValueError: one of them is something else, or there is none; the sentence has nothing of it.
    """
    parts = [part.strip() for part in secret.get_secret_value().split(",") if part.strip()]
    if not parts:
        raise ValueError("there is no key in it; `cplane secret` prints one")
    return tuple(_read_key(part, number) for number, part in enumerate(parts, 1))


def _read_key(text: str, number: int) -> bytes:
    try:
        padded = text.rstrip("=").translate(str.maketrans("-_", "+/"))
        key = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except (binascii.Error, ValueError):  # their text is not for others
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"key {number} is not {KEY_BYTES} bytes in base64; `cplane secret` prints one") from None
    return key
