"""Volumes: reading, the phantom, splits and undersampled cases."""
