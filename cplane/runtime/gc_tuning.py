"""How often Python looks for garbage in a program of ours that makes many short-lived objects."""

import gc

YOUNG = 20_000
"""Objects that may be made before the young ones are looked at. Python's 700 (2,000 since 3.12) is a few dozen jobs: a
busy worker spent a fifth to nearly half of its time on objects that were still in use (measured, transient no-op jobs: 31 µs of CPU
each with Python's thresholds, 17 µs with these)."""

MIDDLE, OLD = 20, 50
"""How many looks at the younger generation go before one at the next older."""


def collect_rarely() -> None:
    """What is loaded by now stays; what is made from now on is looked at less often. For programs of ours, never for a library's user."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
