"""Measuring reconstruction networks: quality, latency and memory of every backend, side by side."""
