"""The reference of the command line, docs/cli.md: made from the commands themselves."""

from collections.abc import Iterator
from enum import Enum
from types import NoneType
from typing import Any, Final, get_args

import typer

REGENERATE: Final = (
    'python -c "from velocity.runners.cli_reference import cli_reference; '
    "print(cli_reference(), end='')\" > docs/cli.md"
)

_HEAD: Final = f"""\
# The command line

Made from the commands; after a change there:

    {REGENERATE}

Each command tells the same with `--help`, and its exit codes at the end.
"""


def cli_reference() -> str:
    """The page, in Markdown: each command with its arguments and options.

    >>> "## velocity validate" in cli_reference()
    True
    """
    from velocity.runners.cli import app

    root = typer.main.get_command(app)
    return "\n".join([_HEAD, *_command(root, "velocity")])


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and those below it, by their full names."""
    yield name, command
    for below, other in getattr(command, "commands", {}).items():
        yield from commands(other, f"{name} {below}")


def _command(root: Any, of: str) -> Iterator[str]:
    for name, command in commands(root, of):
        if command.hidden:
            continue
        yield f"## {name}\n"
        yield f"{_text(command.help or command.short_help or '')}\n"
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            yield "| | | default |\n| --- | --- | --- |"
            yield from rows
            yield ""
        if command.epilog:
            yield f"{_text(command.epilog)}\n"


def _row(parameter: Any) -> str | None:
    if parameter.name == "help" or getattr(parameter, "hidden", False):
        return None
    if parameter.param_type_name == "argument":
        shown = parameter.metavar or str(parameter.name).upper()
        shown += "" if parameter.required else " (optional)"
    else:
        names = [*parameter.opts, *parameter.secondary_opts]
        shown = ", ".join(names)
        if kind := parameter.metavar or _kind(parameter.type_descriptor.annotation):
            shown += f" {kind}"
        shown += " (required)" if parameter.required else ""
    about = _text(getattr(parameter, "help", None) or "")
    if variable := getattr(parameter, "envvar", None):
        about += f" From `{variable}` too."
    return f"| `{_cell(shown)}` | {_cell(about)} | {_cell(_default(parameter))} |"


def _kind(annotation: Any) -> str:
    """What an option takes, in a word; nothing if it is a flag.

    >>> _kind(bool), _kind(int | None), _kind(list[str])
    ('', 'INT', 'STR')
    """
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return "|".join(str(member.value) for member in kinds[0])
    return "" if kinds[0] is bool else str(getattr(kinds[0], "__name__", kinds[0])).upper()


def _default(parameter: Any) -> str:
    told = getattr(parameter, "show_default", None)
    if isinstance(told, str):
        return told
    if told is False or parameter.default in (None, False, (), []) or callable(parameter.default):
        return ""
    value = getattr(parameter.default, "value", parameter.default)
    return f"`{value}`" if value is not True else "yes"


def _text(text: str) -> str:
    return "\n".join(line.strip() for line in text.replace("\f", "").strip().splitlines())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
