"""Sub-commands of the core; each one imports heavy libraries only when it runs."""
