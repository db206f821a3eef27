"""Log lines of the keeper, in the formats of `cplane.logs`, without its libraries: the keeper must stay small."""

import json
import os
import sys
from datetime import UTC, datetime


def log(event: str, *, level: str = "warning", **fields: object) -> None:
    """Write one line to stderr. Fields that are None are left out."""
    now = datetime.now(tz=UTC).isoformat().replace("+00:00", "Z")
    given = {name: value for name, value in fields.items() if value is not None}
    if os.environ.get("CPLANE_LOG_FORMAT") == "json":
        line = json.dumps({**given, "event": event, "level": level, "timestamp": now}, default=str)
    else:
        line = f"{now} [{level:<8}] {event:<30} " + " ".join(f"{name}={value}" for name, value in given.items())
    sys.stderr.write(f"{line.rstrip()}\n")
    sys.stderr.flush()
