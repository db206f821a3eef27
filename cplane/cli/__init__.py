"""The `cplane` command. A command's own imports stand inside it, so that `cplane --help` answers at once."""

from cplane.cli.app import main

__all__ = ["main"]
