"""The path of a request inside the app, wherever the app is mounted."""

from starlette.types import Scope


def own_path(scope: Scope) -> str:
    """Return the path without the prefix of `--root-path`, or of the app in which this one is mounted."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
