"""Readers of surveys' own files."""
