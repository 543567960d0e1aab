"""Hold a command line in a deployment file against the options that the installed program really has."""

from __future__ import annotations

from typing import Any


def parse_digs_survey(arguments: list[str]) -> dict[str, Any]:
    """Parse ``digs-survey COMMAND ...`` with the command's own parser; unknown options raise.

    Only the parser runs, not the conversion of values: a catalog need not exist.
    """
    import typer.main

    from digs_survey import cli

    program, name, *rest = arguments
    assert program == "digs-survey"
    group = typer.main.get_command(cli.app)
    command = group.commands[name]  # type: ignore[attr-defined]
    return parse(command, rest)


def parse(command: Any, arguments: list[str]) -> dict[str, Any]:
    """Parse ``arguments`` with a click command's own parser and refuse what it leaves over."""
    context = command.make_context(command.name, [], resilient_parsing=True)
    values, left, _ = command.make_parser(context).parse_args(list(arguments))
    assert not left, f"{command.name} does not take {left}"
    return values
