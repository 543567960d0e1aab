"""The command line: its commands and options, and what they print. The work itself is done elsewhere."""

from digs_survey.cli.stage_commands import app, main

__all__ = ["app", "main"]
