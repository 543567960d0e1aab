"""Readers of surveys' files, one module a survey."""
