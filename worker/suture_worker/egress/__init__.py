"""The way out: what may leave is checked, written to the log with its exact bytes, and held where a person releases."""
