"""Files of graphs, read without the runtime that executes them: what they hold, and refer to."""
