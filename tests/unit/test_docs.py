"""Commands on the pages are run, or read by their own parsers; TOML, Python, links and names are checked."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc_ewc import cli, config, records, suites
from hpc_ewc.config import build_experiment, load_experiment
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.profile import keys
from hpc_ewc.launch.profile.reading import build_profile
from hpc_ewc.report import __main__ as report
from hpc_ewc.report import build
from hpc_ewc.report.build import Options
from hpc_ewc.worker.__main__ import STAGES
from tests.conftest import REPOSITORY, link_miniature, use_hub_cache
from tests.unit.docs_pages import PAGES, Block, Command, anchors, blocks, commands_of, links, spans
from tests.unit.report_fixture import RunBuilder
from tests.unit.run_folders import rank_log, start

BLOCKS = [block for page in PAGES for block in blocks(page)]


def once(commands: Iterable[Command]) -> list[Command]:
    """Return each command at its first place."""
    found: dict[tuple[str, ...], Command] = {}
    for command in commands:
        found.setdefault(command.words, command)
    return list(found.values())


SHOWN = once(command for block in BLOCKS if block.language == "bash" for command in commands_of(block))
NAMED = once(command for page in PAGES for command in spans(page))

NOT_OURS = {
    "apt-get": "Debian's; .ci/run installs the same packages",
    "[": "the shell's",
    "cp": "the shell's; the copy is there in the tests below",
    "source": "the shell's",
    "sleep": "the shell's",
    "-s": "sudo's: a shell as root",
    "sinfo": "Slurm's: tests/slurm",
    "squeue": "Slurm's: tests/slurm",
    "hf": "huggingface_hub's: wants an account",
    "lm-eval": "tests/end_to_end/test_evaluate.py runs it, task by task",
}
PARSED_ALONE = {
    "prefetch": "wants a hub: tests/end_to_end/test_prefetch.py runs it against one of its own",
    "doctor": "wants a cluster: tests/slurm/test_doctor.py, tests/unit/test_launch_doctor.py",
    "evaluate": "wants checkpoints: tests/end_to_end/test_evaluate_any.py",
}


def name(command: Command) -> str:
    return f"{command.place} {' '.join(command.words)}"[:100]


# ---------------------------------------------------------------------------------------------- a place to run them


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Path:
    """Return a checkout as a user has it: experiments and profiles, one of their own each, and three run folders."""
    folder = tmp_path_factory.mktemp("checkout")
    link_miniature(folder, miniature)
    shutil.copytree(REPOSITORY / "sweeps", folder / "sweeps")
    (folder / "slurm").mkdir()
    for path in (REPOSITORY / "slurm").glob("*.toml"):
        shutil.copy(path, folder / "slurm")
    shutil.copy(REPOSITORY / "sweeps" / "miniature.toml", folder / "sweeps" / "mine.toml")
    for own in ("mine", "y"):
        shutil.copy(REPOSITORY / "slurm" / "sandbox.toml", folder / "slurm" / f"{own}.toml")
    for run_folder in ("miniature", "paper", "on-slurm/miniature"):
        make_run_folder(folder / "runs" / run_folder)
    return folder


def make_run_folder(root: Path) -> None:
    """Make the finished run folder of an experiment: records, trainings, output of ranks."""
    strengths = load_experiment(REPOSITORY / "sweeps" / f"{root.name}.toml").grid["ewc.strength"]
    builder = RunBuilder(root, strengths=strengths, tasks=("arc_easy",), n=6)
    built = builder.build()
    names = [path.name for path in sorted((root / "train").iterdir())]
    Ledger(built).graph([{"stage": "train", "run": run, "depends": []} for run in names])
    for number, run in enumerate(names):
        folder = built.train(run)
        key = records.read_json(folder.stage_json)["key"]
        records.write_json(folder.done, records.read_json(folder.done) | {"key": key})
        job = start(built, "train", run, f"job{number}", outcome="finished")
        for rank in range(4):
            rank_log(job, rank, "stdout.log", f"rank {rank} was here\n")


@pytest.fixture
def at_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HPC_EWC_CACHE", str(place / "cache"))
    use_hub_cache(monkeypatch, place / "hub")
    return place


# ---------------------------------------------------------------------------------------------- commands


def test_all_kinds_of_commands_are_found() -> None:
    programs = {command.words[0] for command in SHOWN}
    assert {"hpc-ewc", "make", "python3", "python", "torchrun", *NOT_OURS} <= programs
    assert {command.words[1] for command in SHOWN if command.words[0] == "hpc-ewc"} == set(cli.COMMANDS)
    assert len(NAMED) > 20


def test_only_blocks_marked_as_shell_contain_commands() -> None:
    program = re.compile(r"^\$? ?(hpc-ewc|python3?|make|torchrun|pip|git|sudo|apt-get) ", re.M)
    wrong = [block.label for block in BLOCKS if not block.language and program.search(block.text)]
    assert not wrong, "begin these with ```bash"


@pytest.mark.parametrize("command", SHOWN, ids=name)
def test_commands_shown_on_pages_run_or_parse(command: Command, at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, at_home, monkeypatch, run=True)


@pytest.mark.parametrize("command", NAMED, ids=name)
def test_commands_named_in_text_parse(command: Command, at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.words[0] == "hpc-ewc" and len(command.words) == 2:
        assert command.words[1] in (*cli.COMMANDS, "…"), "a command's name alone"
        return
    check(command, at_home, monkeypatch, run=False)


def check(command: Command, at_home: Path, monkeypatch: pytest.MonkeyPatch, run: bool) -> None:
    """Run a command, or read it with its own parser; fail if it can be neither run nor read."""
    match command.words:
        case ("hpc-ewc", *words):
            check_ours(words, monkeypatch)
            if "--as-job" in words:
                check_as_job(words, monkeypatch)
            elif run and words[0] in ("report", "compare"):
                check_report([word for word in words if word != "report"], monkeypatch)
            elif run and words[0] not in PARSED_ALONE:
                RUN[words[0]](words)
        case ("make", target):
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.M), f"no target {target}"
        case ("python" | "python3" as python, *words):
            check_python(python, words, run, monkeypatch)
        case ("torchrun", *words):
            check_torchrun(words)
        case (program, *_):
            assert run and program in NOT_OURS, f"{command.shown}: neither run nor read; say here how it is checked"


def check_ours(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command with the real parser; the command itself only records the call."""
    called: list[object] = []
    assert words[0] in cli.COMMANDS
    module = importlib.import_module(f"hpc_ewc.cli.{words[0]}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", lambda settings: called.append(settings) or 0)
        assert cli.main(words) == 0
    assert [type(settings) for settings in called] == [module.Settings]


def check_as_job(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything but sbatch."""
    answer = subprocess.CompletedProcess(["sbatch"], 0, "123\n", "")
    monkeypatch.setattr("hpc_ewc.launch.fetch.prefetch.subprocess.run", lambda *_, **__: answer)
    assert cli.main(words) == 0


def submit(words: list[str]) -> None:
    """Submit as a dry run."""
    assert cli.main([*words, *(["--dry-run"] if "--dry-run" not in words else [])]) == 0


def finished(words: list[str]) -> None:
    assert cli.main(words) == 0


RUN: dict[str, Callable[[list[str]], None]] = {
    "submit": submit,
    "status": finished,
    "logs": finished,
    "cancel": finished,
}


def check_python(python: str, words: list[str], run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ["-m", "hpc_ewc.report", *rest]:
            check_report(rest or ["runs/miniature"], monkeypatch)
        case ["-m", "hpc_ewc.worker", *rest]:
            check_worker(rest)
        case ["-m", "examples.miniature", *rest]:
            from examples.miniature import __main__ as made

            read(made.main, rest)
        case ["-m", "examples.miniature.criterion", *rest]:
            from examples.miniature import criterion

            read(criterion.main, rest)
        case ["-m", "torch.distributed.run", *rest]:
            check_torchrun(rest)
        case ["-m", "tests.slurm.soak", *rest]:
            from tests.slurm import soak

            read(soak.main, rest)
        case ["slurm/sandbox", *rest]:
            assert python in ("python3", "python")
            done = subprocess.run([sys.executable, "-c", READ_SANDBOX, *rest], cwd=REPOSITORY, capture_output=True)
            assert done.returncode == 0, done.stderr.decode()
        case ["-c", program]:
            compile(program, "-c", "exec")
        case [script, *_]:
            assert (REPOSITORY / script).is_file(), script
            assert "__main__" in (REPOSITORY / script).read_text(), f"{script} is no program"


def check_report(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the report in its cheapest form if its run folder exists; otherwise read the line."""

    def cheap(paths: tuple[Path, ...], out: Path | None, options: Options, console: Console) -> None:
        if all(path.exists() for path in paths):
            build.report(paths, out, dataclasses.replace(options, formats=("csv",), paired=False), console)

    monkeypatch.setattr(report, "report", cheap)
    if words[0] == "compare" and not any(Path(word).exists() for word in words):
        monkeypatch.setattr(report, "compare_paths", lambda *_: None)
        monkeypatch.setattr(report, "print_comparison", lambda *_: None)
    assert report.main(words) == 0


READ_SANDBOX = "import runpy, sys; runpy.run_path('slurm/sandbox', run_name='read')['parse'](sys.argv[1:])"


def check_worker(words: list[str]) -> None:
    """Let a worker read its line and fail on the missing folder."""
    assert words[0] in STAGES
    main = importlib.import_module(f"hpc_ewc.worker.{words[0]}").main
    if words[0] == "tokens":
        assert main(words[1:]) == 1
        return
    with pytest.raises(ArtefactError, match="no stage.json"):
        main(words[1:])


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    assert options.module and options.training_script == "hpc_ewc.worker"
    check_worker(options.training_script_args)


def read(main: Callable[[list[str]], Any], words: list[str]) -> None:
    """Let argparse read a line, and stop there."""

    class ReadError(Exception):
        pass

    def stop(self: argparse.ArgumentParser, *arguments: Any) -> Any:
        real(self, *arguments)
        raise ReadError

    real = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ReadError):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        main(words)


# ---------------------------------------------------------------------------------------------- TOML, Python


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda block: block.label)
def test_toml_blocks_are_valid(block: Block) -> None:
    table = tomllib.loads(block.text)
    if set(table) <= {*config.SECTIONS, "grid", "resources"}:
        for section, least in {"model": {"path": "a/model"}, "data": {"source": "a/corpus"}}.items():
            table[section] = least | table.get(section, {})
        experiment = build_experiment(table, block.label)
        if not experiment.evaluate.include:  # user tasks are in a folder that does not exist here
            suites.expand_suites(experiment.evaluate, experiment.data.language)
    else:
        build_profile(table, block.label)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda block: block.label)
def test_python_blocks_import_existing_names(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text.replace("…", "..."))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


# ---------------------------------------------------------------------------------------------- links, names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_named_keys_exist(page: Path) -> None:
    sections = {**config.SECTIONS, **keys.SECTIONS, "resources": config.Resources}
    known = {name: {field.name for field in dataclasses.fields(cls)} for name, cls in sections.items()}
    known["resources"] |= {"STAGE", *config.STAGES}
    for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(known)})\.(\w+)\b(?![/(])", span):
            is_file = key in ("py", "md", "toml", "json", "jsonl")
            is_module = (REPOSITORY / "hpc_ewc" / section / f"{key}.py").exists()
            assert key in known[section] or is_file or is_module, f"`{span}`: no key {section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_resolve(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path}: no such file"
        assert os.path.commonpath([target, REPOSITORY]) == str(REPOSITORY), f"{path} leads out of the repository"
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}: no such heading"


def test_every_page_is_in_the_index() -> None:
    index = REPOSITORY / "docs" / "README.md"
    linked = {(index.parent / path).resolve() for path, _ in links(index)}
    assert set((REPOSITORY / "docs").glob("*.md")) - {index} <= linked


WALKS = [page for page in PAGES if page.name not in ("LOG.md", "commands.md")]
"""All pages except the log, whose entries keep the names of their time."""
MADE_UP = ("sweeps/x.toml", "slurm/NAME.toml")


@pytest.mark.parametrize("page", WALKS, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_walkthroughs_name_existing_files_and_functions(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    package = REPOSITORY / "hpc_ewc"
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 15 or page.name != "inside.md"
    for path, word in named:
        assert re.search(rf"^(def|class) {word}\b", (package / path).read_text(), re.M), f"{path}::{word}"
    for path in re.findall(r"`([\w/]+\.py)\b", text):
        places = [REPOSITORY / place for place in (".", "benchmarks", "tests/unit", "examples", "examples/miniature")]
        assert any((place / path).exists() for place in places) or list(package.rglob(path)), path
    for path in re.findall(r"`((?:hpc_ewc|docs|tests|slurm|sweeps|benchmarks|examples)/[\w/.-]*)`", text):
        assert (REPOSITORY / path).exists() or path in MADE_UP, path
    for module, function in re.findall(r"`(\w+)\.(\w+)`", text):
        source = package / f"{module}.py"
        assert (
            function in ("json", "toml", "py")
            or not source.exists()
            or re.search(rf"def {function}\b", source.read_text())
        ), f"{module}.{function}"
    for word in re.findall(r"`(\w+)` in\s+`(hpc_ewc/[\w/]+\.py)`", text):
        assert re.search(rf"\b{word[0]}\b", (REPOSITORY / word[1]).read_text(encoding="utf-8")), word


NAMES_OF_OTHERS = {
    *("associations", "maxsubmitjobsperuser", "CPUTot"),  # Slurm
    *("mmlu_continuation", "my_tasks", "on_pre_optimizer_step"),  # lm-eval, a user, transformers
}


@functools.cache
def words_of_the_code() -> set[str]:
    """Return every word in the code, the experiments and the profiles, and in the names of files and folders."""
    folders = ("hpc_ewc", "examples", "slurm", "sweeps", "tests", "benchmarks", "docs")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if "__pycache__" not in path.parts]
    kinds = ("", ".py", ".toml", ".json", ".jsonl", ".sh")
    files = [path for path in paths if path.is_file() and path.suffix in kinds and path != Path(__file__)]
    files += [REPOSITORY / "Makefile", REPOSITORY / "pyproject.toml", REPOSITORY / "docs" / "reference" / "commands.md"]
    texts = [*map(str, paths), *(path.read_text(encoding="utf-8", errors="replace") for path in files)]
    return {word for text in texts for word in re.findall(r"\w+", text)}


@pytest.mark.parametrize("page", WALKS, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_names_in_running_text_exist_in_the_code(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    named = {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[A-Za-z_]\w{3,}", span)}
    unknown = named - NAMES_OF_OTHERS - words_of_the_code()
    assert not {word for word in unknown if not re.fullmatch("[0-9a-f]{7}", word)}  # commit hashes


def test_the_architecture_diagram_names_existing_modules() -> None:
    text = (REPOSITORY / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    rooms = set(re.findall(r'class="code"[^>]*>((?:\w+/)*\w+)/?<', text)) - {"code"}
    assert {"cli", "node", "worker", "ewc", "launch/submit"} <= rooms
    for room in rooms:
        assert list((REPOSITORY / "hpc_ewc").glob(f"{room}*")), room
