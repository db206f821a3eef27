"""The parts of `cplane demo`: a sample site, jobs that visit it, and their results."""
