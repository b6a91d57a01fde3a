"""Running bundles and checkpoints. torch is imported only by the sessions that are made of it."""
