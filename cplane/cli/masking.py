"""Masks the secrets in URLs."""

from urllib.parse import parse_qsl, quote, urlsplit

MASK = "***"
SECRET_PARAMETERS = ("password", "secret", "token", "key")


def masked(url: str) -> str:
    """Return `url` with `***` for its password and for every parameter whose name suggests a secret."""
    parts = urlsplit(url)
    address, at, host = parts.netloc.rpartition("@")
    user, colon, _ = address.partition(":")
    netloc = f"{user}{colon}{MASK if colon else ''}{at}{host}"
    query = "&".join(
        f"{name}={MASK if _is_secret(name) else quote(value, safe='/:,')}" for name, value in parse_qsl(parts.query)
    )
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def _is_secret(parameter: str) -> bool:
    return any(word in parameter.lower() for word in SECRET_PARAMETERS)
