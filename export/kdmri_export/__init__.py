"""Turning trained networks into graphs for other runtimes, each one checked for parity."""
