"""Measuring rows: processes, latency, memory, energy, quality."""
