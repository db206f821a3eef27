"""What the program itself needs to run well: batching, cancellation, garbage collection, ids. Knows nothing of jobs."""
