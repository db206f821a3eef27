"""The embedded servers of `cplane dev` and of the tests: real Postgres and Redis, children of this process."""

from cplane.dev.stack import DevStack

__all__ = ["DevStack"]
