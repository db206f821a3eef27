"""Pages of those browsers: leased to one job at a time, opened ahead of use, and shared where a job asks for it."""
