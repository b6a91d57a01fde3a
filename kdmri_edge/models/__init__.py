"""Reconstruction networks: one typed specification, named presets and their torch modules."""
