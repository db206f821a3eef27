"""Valid names of jobs, queues and sessions: safe in Redis keys, paths, URLs and logs."""

import re

JOB_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,199}")
QUEUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
SESSION_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,199}")

DEFAULT_QUEUE = "default"
"""The queue of jobs that name no other and need no page."""

QUARANTINE_SUFFIX = "~quarantine"
"""What the name of a queue's quarantine ends with; no queue that a user names can end so."""


def quarantine_of(queue: str) -> str:
    """Return the quarantine of a queue: in it wait the jobs that run alone. It is its own quarantine."""
    return queue if queue.endswith(QUARANTINE_SUFFIX) else queue + QUARANTINE_SUFFIX


def without_quarantine(queue: str) -> str:
    """Return the queue that a quarantine belongs to; any other queue as it is."""
    return queue.removesuffix(QUARANTINE_SUFFIX)
