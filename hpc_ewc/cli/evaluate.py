"""`hpc-ewc evaluate CHECKPOINT…`: its options, and the keys of [evaluate] that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from hpc_ewc.cli.options import OptionalNumber, OptionalPath, SubmitOptions
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.plan.request import run_folder
from hpc_ewc.launch.profile.reading import load_profile
from hpc_ewc.launch.submit.evaluate_checkpoints import build_request
from hpc_ewc.launch.submit.submit import submit

SAME_NAME = ("batch_size", "max_length", "backend", "backend_args", "limit", "max_gen_toks", "judge")
"""Options with the name and value of a key of [evaluate]."""
FilesByLanguage = Annotated[str | None, tyro.conf.arg(metavar="LANGUAGE=FILE,…")]


@dataclass(frozen=True, kw_only=True)
class Settings(SubmitOptions):
    """Evaluate any checkpoints on the suites. Run it again to compute only what is still missing.

    Exit status: as for submit.
    """

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT…")]
    """Folders, globs, or hub ids (owner/name, owner/name@revision)."""
    suites: str = "en,lt,fluency"
    """Suites, tasks, single cells or lm-eval tasks, separated by commas."""
    shots: Annotated[str | None, tyro.conf.arg(metavar="TASK=N,…")] = None
    """Worked examples by task; absent: gsm8k=5,mmlu=5. Other built-in tasks get 0."""
    prompts: str = "core"
    """core, native, or core,native."""
    heldout: FilesByLanguage = None
    """Held-out text by language, such as en=news.en.jsonl,lt=news.lt.jsonl."""
    include: Annotated[str | None, tyro.conf.arg(metavar="FOLDER,…")] = None
    """Folders of further lm-eval task files, separated by commas."""
    limit: OptionalNumber = None
    """Only the first N documents of each task."""
    batch_size: int = 16
    """Requests that are scored at once."""
    max_length: int = 2048
    """Tokens of context."""
    dtype: str = "bfloat16"
    """Data type of the model: bfloat16 or float32."""
    backend: str = "hf"
    """hf or vllm."""
    backend_args: Annotated[str, tyro.conf.arg(metavar="NAME=VALUE,…")] = ""
    """Further arguments of vllm, such as gpu_memory_utilization=0.8,enforce_eager=True."""
    questions: OptionalPath = None
    """Folder of rows to use instead of the hub's data sets: <language>/<task>/<split>.jsonl."""
    cloze: bool = False
    """MMLU and Belebele of --questions ask for the answer's words, not its letter."""
    max_gen_toks: OptionalNumber = None
    """Most tokens of a generated answer; absent: lm-eval's own."""
    judge: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Model whose perplexity judges the checkpoints' answers (judged_answers); absent: no such cell."""
    judge_questions: FilesByLanguage = None
    """Questions for the judged answers, by language, such as lt=questions.jsonl; absent: TruthfulQA's."""
    base: Annotated[str | None, tyro.conf.arg(metavar="CHECKPOINT")] = None
    """Model that the checkpoints were trained from: it is evaluated too, and the report compares with it."""
    name: str = "checkpoints"
    """Name of the run folder."""


def run(settings: Settings) -> int:
    """Evaluate checkpoints; return the exit status."""
    profile = load_profile(settings.profile)
    folder = run_folder(settings.name, f"--name {settings.name}", profile, settings.runs)
    keys = evaluate_keys(settings)
    request = build_request(settings.checkpoints, settings.base, keys, settings.dtype, folder)
    return submit(request, profile, folder, settings.out, dry_run=settings.dry_run, yes=settings.yes)


def evaluate_keys(settings: Settings) -> dict[str, Any]:
    """Return the keys of [evaluate] that the options stand for.

    Raises:
        ConfigError: a word that is not `name=value` where that is needed.
    """
    keys: dict[str, Any] = {
        "suites": _split(settings.suites),
        "prompts": _split(settings.prompts),
        "include": _split(settings.include),
        "heldout": _pairs(settings.heldout, "--heldout", "en=news.en.jsonl"),
        "judge_questions": _pairs(settings.judge_questions, "--judge-questions", "lt=questions.jsonl"),
        "shots": _shots(settings.shots),
        "cloze": settings.cloze or None,
        "questions": settings.questions and str(local_path(str(settings.questions))),
    }
    keys |= {key: getattr(settings, key) for key in SAME_NAME}
    return {key: value for key, value in keys.items() if value is not None}


def _shots(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    pairs = _pairs(text, "--shots", "gsm8k=5")
    wrong = [f"{task}={n}" for task, n in pairs.items() if not re.fullmatch("[0-9]{1,6}", n)]
    if wrong:
        raise ConfigError(f"--shots {text}: {wrong[0]!r}: not a whole number from 0 to 100")
    return {task: int(n) for task, n in pairs.items()}


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _pairs(text: str | None, flag: str, example: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _split(text)]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f"{flag} {text}: {key!r} is not name=value, such as {example}")
    return {key: value for key, _, value in pairs}
