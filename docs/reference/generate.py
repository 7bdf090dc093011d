"""Write the pages beside this file from the code: `python docs/reference/generate.py`, or `make docs`.

Commands come from the dataclasses and parsers that read them, keys from the dataclasses that TOML becomes. A test
compares the pages with what this writes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import runpy
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro

from hpc_ewc import cli, config
from hpc_ewc.launch.profile import keys
from hpc_ewc.launch.profile.resources import DEFAULT_TIME_MIN

HERE = Path(__file__).resolve().parent
SANDBOX = HERE.parents[1] / "slurm" / "sandbox"
GENERATED = "<!-- written by docs/reference/generate.py (`make docs`) from the code: change it there -->"
TYPES = {str: "string", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def pages() -> dict[str, str]:
    """Return the text of each page, by file name."""
    made = {"commands.md": render_commands(), "experiment.md": render_experiment(), "profile.md": render_profile()}
    return {name: f"{GENERATED}\n{text.rstrip()}\n" for name, text in made.items()}


# ---------------------------------------------------------------------------------------------- commands


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument of a command: one row of its table."""

    shown: str
    """As a user types it: `--profile PATH`, or `SWEEP` for a positional argument."""
    default: str
    text: str
    optional: bool = True

    @property
    def usage(self) -> str:
        first = self.shown.split(", ")[-1]
        return f"[{first}]" if self.optional and not first.startswith("[") else first


def render_commands() -> str:
    blocks = ["# Every command", "Options may come anywhere in the line. `--help` after a command prints the same."]
    for name in cli.COMMANDS:
        settings = importlib.import_module(f"hpc_ewc.cli.{name}").Settings
        blocks += render_command(f"hpc-ewc {name}", inspect.cleandoc(settings.__doc__ or ""), read_settings(settings))
    blocks += ["`python -m hpc_ewc.report` is the same as `hpc-ewc report`, with `compare` as `hpc-ewc compare`."]
    miniature = importlib.import_module("examples.miniature.__main__")
    blocks += render_parser("python -m examples.miniature", "Make the miniature's files.", lambda: miniature.main([]))
    with sandbox() as main:
        blocks += sandbox_commands(main)
    blocks += [
        "## Inside jobs",
        "`submit` starts these workers; run by hand they do the same ([how](../launch.md#who-runs-it)).",
    ]
    for stage in ("tokens", "fisher", "train", "evaluate"):
        worker = importlib.import_module(f"hpc_ewc.worker.{stage}")
        blocks += render_parser(f"python -m hpc_ewc.worker {stage}", "", lambda worker=worker: worker.main([]))  # type: ignore[misc]
    return "\n\n".join(block for block in blocks if block)


def sandbox_commands(main: dict[str, Any]) -> list[str]:
    """Return one table of all commands of the sandbox, which share their options."""
    rows = ["| command | arguments | does |", "|---|---|---|"]
    for name, sentence in main["COMMANDS"].items():
        line = [name, *(["NAME"] if name.partition("-")[0] in ("power", "kill", "restart") else [])]
        arguments = read_parser(lambda line=line: main["parse"](line))  # type: ignore[misc]
        listed = ", ".join(code(argument.usage) for argument in arguments if "--state" not in argument.shown)
        rows.append(f"| `{name}` | {listed} | {cell(sentence)} |")
    text = "A real Slurm on this machine ([how](../sandbox.md)). Each command takes `--state DIR`, the folder of files."
    return ["## python3 slurm/sandbox", "    python3 slurm/sandbox COMMAND [OPTIONS]", text, "\n".join(rows)]


def render_command(program: str, text: str, arguments: list[Argument]) -> list[str]:
    required = [argument.usage for argument in arguments if not argument.shown.startswith("-")]
    usage = " ".join([program, *required, *(["[OPTIONS]"] if len(required) < len(arguments) else [])])
    rows = ["| argument | default | is |", "|---|---|---|"]
    rows += [f"| {code(a.shown)} | {a.default} | {cell(a.text)} |" for a in arguments]
    return [f"## {program}", f"    {usage}", text, "\n".join(rows) if arguments else ""]


def read_settings(cls: type) -> list[Argument]:
    """Return the arguments of a command from its settings, a dataclass of which tyro makes the parser."""
    docs = {name: text for base in reversed(cls.__mro__[:-1]) for name, text in config.option_docs(base).items()}
    hints = typing.get_type_hints(cls, include_extras=True)
    places, options = [], []
    for field in dataclasses.fields(cls):
        facts = getattr(hints[field.name], "__metadata__", ())
        kind = typing.get_args(hints[field.name])[0] if facts else hints[field.name]
        metavar = next((fact.metavar for fact in facts if getattr(fact, "metavar", None)), None)
        aliases = next((tuple(fact.aliases) for fact in facts if getattr(fact, "aliases", None)), ())
        several, required = typing.get_origin(kind) is tuple, field.default is dataclasses.MISSING
        text = " ".join(docs[field.name].split())
        if tyro.conf.Positional[int].__metadata__[0] in facts:
            shown = metavar or ("PATH…" if several else field.name.upper())
            places.append(Argument(shown, "required" if required else "absent", text, not required))
            continue
        words = {bool: "", int: "N", float: "N", str: "TEXT"}
        value = metavar or words.get(kind, "WORD…" if several else "PATH")
        flags = [*aliases, f"--{field.name.replace('_', '-')} {value}".rstrip()]
        default = " ".join(field.default) if several else field.default
        options.append(Argument(", ".join(flags), "off" if kind is bool else shown_default(default), text))
    return places + options


def render_parser(program: str, text: str, call: Callable[[], Any]) -> list[str]:
    return render_command(program, text, read_parser(call))


def read_parser(call: Callable[[], Any]) -> list[Argument]:
    """Return the arguments of a command that uses argparse; `call` runs it without arguments."""
    arguments = []
    for action in find_parser(call)._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        value = "" if action.nargs == 0 else f" {metavar}"
        shown = ", ".join(f"{flag}{value}" for flag in action.option_strings) or str(metavar)
        default = "required" if action.required else shown_default(action.default)
        arguments.append(Argument(shown, default, action.help or "", not action.required))
    return arguments


class _FoundError(Exception):
    """Carries a parser out of the function that made it."""


def find_parser(call: Callable[[], Any]) -> argparse.ArgumentParser:
    """Return the parser that `call` uses, the innermost one where there are subcommands."""
    real = argparse.ArgumentParser.parse_known_args

    def capture(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return real(self, args, namespace)
        raise _FoundError(self)

    argparse.ArgumentParser.parse_known_args = capture  # type: ignore[method-assign]
    try:
        call()
    except _FoundError as found:
        return typing.cast(argparse.ArgumentParser, found.args[0])
    finally:
        argparse.ArgumentParser.parse_known_args = real  # type: ignore[method-assign]
    raise AssertionError("no line was parsed")


@contextlib.contextmanager
def sandbox() -> Iterator[dict[str, Any]]:
    """Yield the names of `slurm/sandbox/__main__.py`, and unload its modules afterwards: they are no package."""
    before = set(sys.modules)
    try:
        yield runpy.run_path(str(SANDBOX), run_name="sandbox")
    finally:
        for name in set(sys.modules) - before:
            if str(SANDBOX) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


# ---------------------------------------------------------------------------------------------- keys


def render_experiment() -> str:
    blocks = [
        "# Every key of an experiment",
        "A file in `sweeps/`; its name is the experiment's. An unknown key, a wrong type or a value out of range is "
        "refused before anything starts. *Name* says whether the key enters the hash that names an artefact "
        "(models and files by their content, not their path). A key that does not enter it may change between two "
        "submits without anything being made again. A key of `[evaluate]` that changes a score "
        "enters the key of each record.",
    ]
    for name, cls in config.SECTIONS.items():
        blocks += render_section(f"[{name}]", cls, named=name != "evaluate")
    blocks += [
        "## [grid]",
        "Lists of values for any key of "
        + ", ".join(f"`[{name}]`" for name in config.GRID_SECTIONS)
        + " that enters the name, "
        "such as `ewc.strength = [0, 1e6]`; there is one run for each combination.",
    ]
    stages = " ".join(config.STAGES)
    blocks += render_section(f"[resources.STAGE], one of {stages}", config.Resources)
    blocks.append(f"Without a value in the profile or the experiment: one node, one rank, {DEFAULT_TIME_MIN} min.")
    return "\n\n".join(blocks)


def render_profile() -> str:
    blocks = [
        "# Every key of a profile",
        "A file in `slurm/`: one machine or cluster. No key of it changes what is computed.",
    ]
    blocks += render_section("Top of the file", keys.Profile)
    blocks += render_section('[local], with `executor = "local"`', keys.LocalConfig)
    blocks += render_section('[slurm], with `executor = "slurm"`', keys.SlurmConfig)
    own = ", ".join(f"`{field.name}`" for field in dataclasses.fields(keys.StageConfig))
    blocks += ["## [slurm.stage.STAGE]", f"Overrides `[slurm]` for one stage: {own}."]
    blocks += render_section("[container]", keys.ContainerConfig)
    blocks += render_section("[resources.STAGE]", config.Resources)
    blocks.append("Overrides the [experiment's own](experiment.md), key by key.")
    return "\n\n".join(blocks)


def render_section(heading: str, cls: type, named: bool = False) -> list[str]:
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
    """Return a default as a user types it, on a command line or (lists, tables) in TOML."""
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
