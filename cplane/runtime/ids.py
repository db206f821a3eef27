"""Time-ordered ids (UUIDv7, RFC 9562): the standard library's where it has them, uuid_utils before."""

import sys
from uuid import UUID

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A new id; ids made later sort later."""
    return uuid7()
