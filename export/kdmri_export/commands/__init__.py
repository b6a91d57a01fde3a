"""Sub-commands that export, check graphs and look at the machine."""
