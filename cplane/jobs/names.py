"""Valid names of jobs, queues and sessions: safe in Redis keys, paths, URLs and logs."""

import re

JOB_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,199}")
QUEUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
SESSION_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,199}")

DEFAULT_QUEUE = "default"
"""The queue of jobs that name no other and need no page."""
