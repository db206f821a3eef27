"""Time-ordered ids (UUIDv7, RFC 9562): from the standard library since Python 3.14, from uuid_utils before."""

import sys
from uuid import UUID

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """Return a new id; ids made later sort later."""
    return uuid7()
