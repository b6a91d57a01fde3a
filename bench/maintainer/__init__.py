"""What keeps the project's own pages and shipped weights; not part of the wheel."""
