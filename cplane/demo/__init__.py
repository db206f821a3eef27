"""What `cplane demo` shows: a sample site, jobs that visit it, and what came back."""
