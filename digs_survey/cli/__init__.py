"""The command line."""

from digs_survey.cli.stage_commands import app, main

__all__ = ["app", "main"]
