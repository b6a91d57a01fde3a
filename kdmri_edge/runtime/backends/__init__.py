"""Runtimes, one module each; `registry` is the table of them."""
