"""Text that every store takes: Postgres, JSON and msgpack."""


def storable(value: str) -> str:
    """Return text that Postgres, JSON and msgpack can store: NUL and lone surrogates are escaped.

    Args:
        value: any text; a file name that is not UTF-8 has lone surrogates, for example.
    """
    if "\0" not in value and value.isascii():
        return value
    return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
