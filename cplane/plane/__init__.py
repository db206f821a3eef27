"""The control plane: submits jobs, reads, cancels and replays them. What HTTP, the CLI and application code use."""
