"""The fair comparison of teacher and students: one protocol, one command."""
