"""The embedded servers of `cplane dev` and of the tests: real Postgres and Redis as child processes."""

from cplane.dev.stack import DevStack

__all__ = ["DevStack"]
