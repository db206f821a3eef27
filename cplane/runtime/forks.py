"""Signals in forked children: they must not reach the event loop of the parent."""

import os
import signal
import threading
from functools import cache

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_masks = threading.local()


@cache
def detach_forked_children() -> None:
    """From now on, give each forked child of this process the default handlers of SIGTERM and SIGINT.

    A child inherits the handlers of the event loop and the pipe that they write to. Without this, a signal to the child
    (`multiprocessing.Pool` terminates its processes with SIGTERM) arrives in the parent, and the child survives it
    (python/cpython#94454). Both signals are blocked while the process forks: one that comes before the handlers are
    reset would do the same. Children that call exec are not concerned.
    """
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)


def _block() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _reset() -> None:
    """In the child, in whose only thread this runs."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _unblock()
