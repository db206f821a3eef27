"""The `cplane` command. Commands import what they need inside their functions, so that `cplane --help` is fast."""

from cplane.cli.app import main

__all__ = ["main"]
