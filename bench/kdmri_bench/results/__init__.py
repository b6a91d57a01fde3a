"""What was measured: the schema of a report, and what follows from its rows."""
