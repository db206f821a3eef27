"""Pages of those browsers: lent to one job at a time, warmed ahead, shared where a job says so."""
