"""Passes over a network or graph before it is written."""
