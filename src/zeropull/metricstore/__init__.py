"""High-resolution readings, kept across restarts: statistics and percentiles by period."""
