"""Helpers without a subject of MR: files, messages, optional imports, settings."""
