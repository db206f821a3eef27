"""Browser processes: finding, launching, watching and retiring them."""
