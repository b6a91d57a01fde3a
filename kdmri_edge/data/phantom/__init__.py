"""A procedural brain-like phantom: the data that ships with the software."""
