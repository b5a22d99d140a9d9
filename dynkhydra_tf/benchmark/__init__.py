"""Benchmarks: what inference and training cost here, and how far that is from the limit."""
