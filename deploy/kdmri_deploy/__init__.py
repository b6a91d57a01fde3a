"""What `deploy/build.py` makes of a bundle for a scanner: not part of the wheel."""
