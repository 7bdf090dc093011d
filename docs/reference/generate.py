"""Write the pages beside this file from the code: `python docs/reference/generate.py`, or `make docs`.

Commands come from the functions and parsers that read them, keys from the dataclasses that TOML becomes. A test
holds that the pages are what this writes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import re
import runpy
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpc_ewc import cli, config
from hpc_ewc.launch.profile import keys
from hpc_ewc.launch.profile.resources import DEFAULT_TIME_MIN
from hpc_ewc.report import __main__ as report

HERE = Path(__file__).resolve().parent
SANDBOX = HERE.parents[1] / "slurm" / "sandbox"
GENERATED = "<!-- written by docs/reference/generate.py (`make docs`) from the code: change it there -->"
TYPES = {str: "string", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def pages() -> dict[str, str]:
    """Each page by its file name."""
    made = {"commands.md": commands(), "experiment.md": experiment(), "profile.md": profiles()}
    return {name: f"{GENERATED}\n{text.rstrip()}\n" for name, text in made.items()}


# ---------------------------------------------------------------------------------------------- commands


@dataclasses.dataclass(frozen=True)
class Argument:
    """A line of a command's table."""

    shown: str
    """As it is typed: `--profile PATH`, or `SWEEP` where it has a place and no name."""
    default: str
    text: str
    optional: bool = True

    @property
    def usage(self) -> str:
        first = self.shown.split(", ")[-1]
        return f"[{first}]" if self.optional and not first.startswith("[") else first


def commands() -> str:
    blocks = ["# Every command", "Options may stand anywhere in the line. `--help` after a command prints the same."]
    for name, function in cli.COMMANDS.items():
        sentence, arguments = read_function(function)
        blocks += command(f"hpc-ewc {name}", sentence, arguments)
    for program, cls in {"hpc_ewc.report": report.Arguments, "hpc_ewc.report compare": report.CompareArguments}.items():
        blocks += command(f"python -m {program}", inspect.cleandoc(cls.__doc__ or ""), read_dataclass(cls))
    miniature = importlib.import_module("hpc_ewc.miniature.__main__")
    blocks += parsed("python -m hpc_ewc.miniature", "Make the miniature's files.", lambda: miniature.main([]))
    with sandbox() as main:
        blocks += sandbox_commands(main)
    blocks += [
        "## Inside jobs",
        "`submit` starts these workers; run by hand they do the same ([how](../launch.md#who-runs-it)).",
    ]
    for stage in ("tokens", "fisher", "train", "evaluate"):
        worker = importlib.import_module(f"hpc_ewc.worker.{stage}")
        blocks += parsed(f"python -m hpc_ewc.worker {stage}", "", lambda worker=worker: worker.main([]))  # type: ignore[misc]
    return "\n\n".join(block for block in blocks if block)


def sandbox_commands(main: dict[str, Any]) -> list[str]:
    """A line a command: they have nearly all in common."""
    rows = ["| command | arguments | does |", "|---|---|---|"]
    for name, sentence in main["COMMANDS"].items():
        line = [name, *(["NAME"] if name.partition("-")[0] in ("power", "kill", "restart") else [])]
        arguments = read_parser(lambda line=line: main["parse"](line))  # type: ignore[misc]
        listed = ", ".join(code(argument.usage) for argument in arguments if "--state" not in argument.shown)
        rows.append(f"| `{name}` | {listed} | {cell(sentence)} |")
    text = "A real Slurm on this machine ([how](../sandbox.md)). Each command takes `--state DIR`, the folder of files."
    return ["## python3 slurm/sandbox", "    python3 slurm/sandbox COMMAND [OPTIONS]", text, "\n".join(rows)]


def command(program: str, text: str, arguments: list[Argument]) -> list[str]:
    required = [argument.usage for argument in arguments if not argument.shown.startswith("-")]
    usage = " ".join([program, *required, *(["[OPTIONS]"] if len(required) < len(arguments) else [])])
    rows = ["| argument | default | is |", "|---|---|---|"]
    rows += [f"| {code(a.shown)} | {a.default} | {cell(a.text)} |" for a in arguments]
    return [f"## {program}", f"    {usage}", text, "\n".join(rows) if arguments else ""]


def read_function(function: Callable[..., int]) -> tuple[str, list[Argument]]:
    """What a command does, and its arguments: tyro makes its parser of this same signature and docstring."""
    told, _, listed = inspect.getdoc(function).partition("\nArgs:\n")  # type: ignore[union-attr]
    texts = {name: " ".join(text.split()) for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.M)}
    hints = typing.get_type_hints(function, include_extras=True)
    arguments = []
    for name, parameter in inspect.signature(function).parameters.items():
        facts = [fact for fact in getattr(hints[name], "__metadata__", ()) if hasattr(fact, "metavar")]
        kind = typing.get_args(hints[name])[0] if hasattr(hints[name], "__metadata__") else hints[name]
        metavar = next((fact.metavar for fact in facts if fact.metavar), None)
        aliases = next((tuple(fact.aliases) for fact in facts if fact.aliases), ())
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            shown, required = metavar or name.upper(), parameter.default is inspect.Parameter.empty
            arguments.append(Argument(shown, "required" if required else "absent", texts[name], not required))
            continue
        value = "" if kind is bool else f" {metavar or ('N' if kind is int else 'TEXT')}"
        flags = [*aliases, f"--{name.replace('_', '-')}{value}"]
        default = "off" if kind is bool else shown_default(parameter.default)
        arguments.append(Argument(", ".join(flags), default, texts[name]))
    return told.strip(), arguments


def read_dataclass(cls: type) -> list[Argument]:
    """The same of a command whose arguments are a dataclass."""
    docs, hints = config.option_docs(cls), typing.get_type_hints(cls, include_extras=True)
    arguments = []
    for field in dataclasses.fields(cls):
        text = " ".join(docs[field.name].split())
        if hasattr(hints[field.name], "__metadata__"):
            several = field.name == "paths"
            required = field.default is dataclasses.MISSING and not several
            shown = "PATH…" if several else field.name.upper()
            optional = several and field.default is not dataclasses.MISSING
            default = "required" if required or (several and not optional) else "absent"
            arguments.append(Argument(shown, default, text, optional))
            continue
        kind = hints[field.name]
        word = "WORD" if kind is str else "PATH"
        word = "N" if kind in (int, float) else "WORD…" if "tuple" in str(kind) else word
        value = "" if kind is bool else f" {word}"
        value_words = " ".join(field.default) if "tuple" in str(kind) else field.default
        default = "off" if kind is bool else shown_default(value_words)
        arguments.append(Argument(f"--{field.name.replace('_', '-')}{value}", default, text))
    return arguments


def parsed(program: str, text: str, call: Callable[[], Any]) -> list[str]:
    return command(program, text, read_parser(call))


def read_parser(call: Callable[[], Any]) -> list[Argument]:
    """The same of a command that reads its line with argparse."""
    arguments = []
    for action in reader(call)._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        value = "" if action.nargs == 0 else f" {metavar}"
        shown = ", ".join(f"{flag}{value}" for flag in action.option_strings) or str(metavar)
        default = "required" if action.required else shown_default(action.default)
        arguments.append(Argument(shown, default, action.help or "", not action.required))
    return arguments


class _FoundError(Exception):
    """Carries the parser out of the function that made it."""


def reader(call: Callable[[], Any]) -> argparse.ArgumentParser:
    """The parser that a command line meets last: of the subcommand, where there are some."""
    real = argparse.ArgumentParser.parse_known_args

    def caught(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return real(self, args, namespace)
        raise _FoundError(self)

    argparse.ArgumentParser.parse_known_args = caught  # type: ignore[method-assign]
    try:
        call()
    except _FoundError as found:
        return typing.cast(argparse.ArgumentParser, found.args[0])
    finally:
        argparse.ArgumentParser.parse_known_args = real  # type: ignore[method-assign]
    raise AssertionError("no line was parsed")


@contextlib.contextmanager
def sandbox() -> Iterator[dict[str, Any]]:
    """The names of `slurm/sandbox/__main__.py`: the modules beside it are no package, and are gone afterwards."""
    before = set(sys.modules)
    try:
        yield runpy.run_path(str(SANDBOX), run_name="sandbox")
    finally:
        for name in set(sys.modules) - before:
            if str(SANDBOX) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


# ---------------------------------------------------------------------------------------------- keys


def experiment() -> str:
    blocks = [
        "# Every key of an experiment",
        "A file in `sweeps/`; its name is the experiment's. An unknown key, a wrong type or a value out of range is "
        "refused before anything starts. *Name* says whether the key enters the hash that names what is made "
        "(models and files by their content, not their path). A key that does not may change between two submits, and "
        "nothing is made again. What changes a score in `[evaluate]` enters the key of each record.",
    ]
    for name, cls in config.SECTIONS.items():
        blocks += section(f"[{name}]", cls, named=name != "evaluate")
    blocks += [
        "## [grid]",
        "Lists of values for any key of "
        + ", ".join(f"`[{name}]`" for name in config.GRID_SECTIONS)
        + " that enters the name, "
        "such as `ewc.strength = [0, 1e6]`; there is one run for each combination.",
    ]
    stages = " ".join(config.STAGES)
    blocks += section(f"[resources.STAGE], one of {stages}", config.Resources)
    blocks.append(f"If neither the profile nor the experiment says it: one node, one rank, {DEFAULT_TIME_MIN} min.")
    return "\n\n".join(blocks)


def profiles() -> str:
    blocks = [
        "# Every key of a profile",
        "A file in `slurm/`: one machine or cluster. No key of it changes what is computed.",
    ]
    blocks += section("Top of the file", keys.Profile)
    blocks += section('[local], with `executor = "local"`', keys.LocalConfig)
    blocks += section('[slurm], with `executor = "slurm"`', keys.SlurmConfig)
    own = ", ".join(f"`{field.name}`" for field in dataclasses.fields(keys.StageConfig))
    blocks += ["## [slurm.stage.STAGE]", f"Overrides `[slurm]` for one stage: {own}."]
    blocks += section("[container]", keys.ContainerConfig)
    blocks += section("[resources.STAGE]", config.Resources)
    blocks.append("Overrides the [experiment's own](experiment.md), key by key.")
    return "\n\n".join(blocks)


def section(heading: str, cls: type, named: bool = False) -> list[str]:
    docs, hints = config.option_docs(cls), typing.get_type_hints(cls)
    rows = ["| key | type | allowed | default |" + (" name |" if named else "") + " is |"]
    rows.append("|---" * (6 if named else 5) + "|")
    for field in dataclasses.fields(cls):
        if not field.metadata:
            continue
        cells = [f"`{field.name}`", type_name(hints[field.name]), allowed(field.metadata), field_default(field)]
        cells += ["yes" if field.metadata["identifies"] else "–"] if named else []
        rows.append("| " + " | ".join([*cells, cell(docs[field.name])]) + " |")
    first = inspect.cleandoc(cls.__doc__ or "").splitlines()[0]
    said = first.partition("]: ")[2] or first
    return [f"## {heading}", said[0].upper() + said[1:], "\n".join(rows)]


def type_name(hint: Any) -> str:
    if typing.get_origin(hint) not in (tuple, dict, None):  # X | None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"list of {TYPES[args[0]]}s" if Ellipsis in args else f"list of {len(args)} {TYPES[args[0]]}s"
    return f"table of {TYPES[args[1]]}s" if origin is dict else TYPES[hint]


def allowed(limits: Any) -> str:
    if limits["choices"]:
        return ", ".join(f"`{choice}`" for choice in limits["choices"] if choice)
    low, high, above = limits["low"], limits["high"], limits["above"]
    ends = [f"≥ {low:g}"] if low is not None else [f"> {above:g}"] if above is not None else []
    return ", ".join([*ends, *([f"≤ {high:g}"] if high is not None else [])])


def field_default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return shown_default(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else shown_default(field.default)


def shown_default(value: Any) -> str:
    """As it would be typed, on a command line or (lists, tables) in TOML."""
    if value is None or value in ("", (), {}):
        return "absent"
    return f"`{value if isinstance(value, str) else config.render_value(value)}`"


def code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
