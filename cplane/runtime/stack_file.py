"""The file in which a running `cplane dev` writes its addresses, and whom it is read from."""

import json
import os
import stat
from pathlib import Path
from typing import Any, cast

STACK_FILE = Path(".cplane") / "stack.json"
"""Where `cplane dev` writes its addresses, relative to the folder it runs in."""

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def running_stack(folder: Path) -> dict[str, str]:
    """Return what the `cplane dev` running in `folder` or a parent wrote there; empty if none runs.

    A file that others could have written is ignored: it says where jobs and their arguments are sent.
    """
    for parent in (folder, *folder.parents):
        if not all(is_ours(path) for path in ((parent / STACK_FILE).parent, parent / STACK_FILE)):
            continue
        try:
            stack = cast("dict[str, Any]", json.loads((parent / STACK_FILE).read_text()))
            os.kill(int(stack["pid"]), 0)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue
        return {name: str(value) for name, value in stack.items() if value is not None}
    return {}


def is_ours(path: Path) -> bool:
    """Return whether a file or folder is there, belongs to this user, and nobody else can write to it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode) and not found.st_mode & WRITABLE_BY_OTHERS
