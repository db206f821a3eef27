"""Runtime support of the process: batching, cancellation, garbage collection, ids. Knows nothing of jobs."""
