"""The help, in plain text with a section for each group of commands, and usage errors in one line."""

from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from jobs.cli.output import output_of

OUTPUT_PANEL = "Output"
"""The section of the options that every command takes, before or after its name."""


class Command(TyperCommand):
    """A command whose logging is set up when all options are known."""

    def invoke(self, ctx: Any) -> Any:
        output = output_of(ctx)
        if output.is_verbose and output.is_quiet:
            ctx.fail("expected --verbose or --quiet, got both")
        output.set_up_logging()
        return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is None:
                error.ctx = ctx  # type: ignore[attr-defined]  # whose help to read
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [_usage(param) for param in self.get_params(ctx) if isinstance(param, TyperArgument)]
        return [*arguments, "[OPTIONS]"] if ctx.allow_interspersed_args else ["[OPTIONS]", *arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_params(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_lines(self.epilog, formatter)


class Commands(TyperGroup):
    """All commands. Each also takes the options of OUTPUT_PANEL."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        shared = [param for param in self.params if getattr(param, "rich_help_panel", None) == OUTPUT_PANEL]
        for command in self.commands.values():
            command.params.extend(shared)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            near = get_close_matches(args[0], self.commands, n=1)
            ctx.fail(f"unknown command {args[0]}{did_you_mean(near)}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands by group, then options."""
        width = max(len(name) for name in self.commands)
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            text = (command.help or "").partition("\n\n")[0]
            panels.setdefault(getattr(command, "rich_help_panel", ""), []).append((name.ljust(width), text))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
        _write_params(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_lines(self.epilog, formatter)


def _write_params(command: Any, ctx: Any, formatter: Any) -> None:
    """Arguments, options and shared options, each in a section of its own."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], OUTPUT_PANEL: []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if isinstance(param, TyperArgument):
            sections["Arguments"].append((param.metavar or param.name, param.help or ""))
        elif record is not None:
            sections[getattr(param, "rich_help_panel", None) or "Options"].append(record)
    for name, rows in sections.items():
        if rows:
            with formatter.section(name):
                formatter.write_dl(rows)


def _usage(argument: TyperArgument) -> str:
    name = argument.metavar or argument.name
    return name if argument.required else f"[{name}]"


def _write_lines(text: str | None, formatter: Any) -> None:
    """Without wrapping: a wrapped example cannot be pasted."""
    formatter.write(f"\n{text}\n" if text else "")


def usage_text(error: typer.TyperException) -> str:
    """Wrong arguments in one line, which ends with the help to read."""
    context = getattr(error, "ctx", None)
    text = _what_is_wrong(error)
    return f"{text}{'' if text.endswith('?') else ';'} see {context.command_path if context else 'nightcrate'} --help"


def _what_is_wrong(error: typer.TyperException) -> str:
    if hasattr(error, "possibilities"):
        return f"unknown option {getattr(error, 'option_name', '')}{did_you_mean(error.possibilities or [])}"
    message = error.format_message().removesuffix(".").replace("'", "")
    param = getattr(error, "param", None)
    if message.startswith("Missing ") and param is not None:
        return f"missing {' / '.join(param.opts) if param.param_type_name == 'option' else param.metavar}"
    if param is not None:
        return f"{' / '.join(param.opts)}: {error.message}" if param.param_type_name == "option" else error.message
    return message[:1].lower() + message[1:]


def did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""
