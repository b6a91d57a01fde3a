"""Sub-commands that measure, select and reproduce."""
