"""This project's own recorded studies; not part of the wheel."""
