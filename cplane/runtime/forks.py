"""Signals in forked children: they must not reach the event loop of the parent."""

import os
import signal
from functools import cache


@cache
def detach_forked_children() -> None:
    """From now on, give each forked child of this process the default handlers of SIGTERM and SIGINT.

    A child inherits the handlers of the event loop and the pipe that they write to. Without this, a signal to the child
    (`multiprocessing.Pool` terminates its processes with SIGTERM) arrives in the parent, and the child survives it
    (python/cpython#94454). Children that call exec are not concerned.
    """
    os.register_at_fork(after_in_child=_reset)


def _reset() -> None:
    """In the child, in whose only thread this runs."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
