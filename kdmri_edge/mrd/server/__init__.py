"""The server that reconstructs scanners' streams."""
