"""The keeper: a small process that starts worker processes, keeps their leases while they are blocked, and cleans up after a crash.

It shares memory with each worker, and runs no code of any job.
"""
