"""Expand `evaluate.suites` into cells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hpc_ewc.config import LANGUAGE, EvaluateConfig
from hpc_ewc.errors import ConfigError, did_you_mean
from hpc_ewc.suites.tasks import BENCHMARKS, FLUENCY, JUDGED, LANGUAGES, SUITES, TASKS, Task

UNDETERMINED = "und"
"""Language (ISO 639-2) of an lm-eval task that was named without one."""
UNKNOWN_COST = 5.0
"""Cost assumed for a task whose rows are not known: that of GSM8K."""


@dataclass(frozen=True)
class Cell:
    """One task in one language, with the settings of this experiment."""

    task: str
    language: str
    variant: str = ""
    suite: str = ""
    shots: int | None = 0
    """Worked examples in the prompt; None: the default of the lm-eval task."""
    metric: str = ""
    """Primary metric; "" for a task that is not in the task table: its first metric."""
    filter: str = ""
    chance: float | None = None
    higher_is_better: bool = True
    cost: float = field(default=1.0, compare=False)
    """Cost of the whole test set, as in `Task`; `assignment.costed` sets it for the rows that are evaluated."""

    @property
    def name(self) -> str:
        """Return `task.language[.variant]`, which is also the name of its files."""
        return ".".join(part for part in (self.task, self.language, self.variant) if part)

    @property
    def text(self) -> str:
        """Return `language[.variant]`: the key of `evaluate.heldout` that a cell of `ppl_heldout` reads."""
        return f"{self.language}.{self.variant}" if self.variant else self.language

    @property
    def kind(self) -> str:
        """Return the kind of the task, as in `Task`; "lm-eval" for a task that is not in the task table."""
        return TASKS[self.task].kind if self.task in TASKS else "lm-eval"

    def at(self, fraction: float) -> str:
        """Return `<fraction>:<cell>`, as `expected` in stage.json lists it."""
        return f"{fraction!r}:{self.name}"


def expand_suites(config: EvaluateConfig, language: str, heldout: Iterable[str] = ()) -> list[Cell]:
    """Return the cells of `[evaluate]`, each once, in the order of `suites`.

    Args:
        config: its `suites` are names of suites, of single cells, of tasks (all languages), or of lm-eval tasks, which
            may be given a language for the tables: `xcopa_et.et`.
        language: language of the corpus; its held-out documents are a cell of `fluency`.
        heldout: further held-out texts, besides `config.heldout`.

    Raises:
        ConfigError: an unknown name (the nearest ones are given), or arguments that the backend does not take.
    """
    _check_backend(config)
    for text in config.heldout:
        if not re.fullmatch(r"[a-z]{2,3}(\.[a-z0-9_]+)?", text):
            raise ConfigError(f"evaluate.heldout.{text!r}: allowed are a language or language.name, such as lt.news")
    texts = list(dict.fromkeys([language, *config.heldout, *heldout]))
    cells: dict[str, Cell] = {}
    for name in config.suites:
        for cell in _named(name, config, texts):
            cells.setdefault(cell.name, cell)
    if not cells:
        raise ConfigError(f"evaluate.suites is empty; known: {', '.join(SUITES)}, and single cells such as arc_easy.lt")
    _check_shots(config, cells.values())
    return list(cells.values())


def _check_shots(config: EvaluateConfig, cells: Iterable[Cell]) -> None:
    """Raise ConfigError for worked examples of a task that is not evaluated."""
    known = {*TASKS, *(cell.task for cell in cells)}
    for task in config.shots:
        if task not in known:
            raise ConfigError(f"evaluate.shots.{task}: no task of that name is evaluated{did_you_mean(task, known)}")


BACKEND_KEYS = {
    "pretrained": "it is the checkpoint",
    "model": "it is the checkpoint",
    "tokenizer": "it is the checkpoint's",
    "add_bos_token": "every request begins with one BOS",
    "dtype": "model.dtype sets it",
    "batch_size": "evaluate.batch_size sets it",
    "max_length": "evaluate.max_length sets it",
    "max_model_len": "evaluate.max_length sets it",
    "seed": "evaluate.seed sets it",
}
"""Arguments of a backend that other keys determine, and why."""


def _check_backend(config: EvaluateConfig) -> None:
    """Check that `backend_args` is name=value, for a backend that takes arguments, and that no other key sets them.

    Raises:
        ConfigError: it is not.
    """
    given = config.backend_args
    if given and config.backend == "hf":
        raise ConfigError(
            f"evaluate.backend_args = {given!r}: backend 'hf' takes none: its settings are model.dtype, "
            "model.attention and evaluate.batch_size; remove it, or set evaluate.backend"
        )
    for word in filter(None, given.split(",")):
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"evaluate.backend_args: {word!r} is not name=value, such as gpu_memory_utilization=0.8")
        if name in BACKEND_KEYS:
            raise ConfigError(f"evaluate.backend_args: '{name}' cannot be set here: {BACKEND_KEYS[name]}; remove it")


def _named(name: str, config: EvaluateConfig, heldout: list[str]) -> list[Cell]:
    """Return the cells of one entry of `evaluate.suites`."""
    if name in LANGUAGES:
        return [cell for task in BENCHMARKS for cell in _cells(task, name, config)]
    if name == "fluency":
        asked = [("ppl_truthfulqa", language) for language in LANGUAGES] + [("ppl_heldout", x) for x in heldout]
        asked += [(JUDGED, language) for language in _judged(config)] if config.judge else []
        return [_cell(TASKS[task], *_parts(text), config) for task, text in asked]
    task, _, rest = name.partition(".")
    if task == JUDGED and config.judge is None:
        raise ConfigError(f"evaluate.suites: '{name}' needs a judge model: set evaluate.judge")
    if task in TASKS:
        known = {cell.name: cell for cell in _every_cell(TASKS[task], config, heldout)}
        if not rest and task == "ppl_heldout":
            return list(known.values())
        if not rest:
            return [
                cell for language in _languages(TASKS[task], config) for cell in _cells(TASKS[task], language, config)
            ]
        if name not in known:
            raise ConfigError(f"evaluate.suites: unknown cell '{name}'{did_you_mean(name, known)}")
        return [known[name]]
    return [_lm_eval_cell(name, config)]


def _every_cell(task: Task, config: EvaluateConfig, heldout: list[str]) -> list[Cell]:
    if task.name == "ppl_heldout":
        return [_cell(task, *_parts(text), config) for text in heldout]
    cells = []
    for language in _languages(task, config):
        cells.append(_cell(task, language, "", config))
        if task.worded and language != "en":
            cells.append(_cell(task, language, "native", config))
    return cells


def _languages(task: Task, config: EvaluateConfig) -> Iterable[str]:
    return _judged(config) if task.name == JUDGED else task.sources


def _judged(config: EvaluateConfig) -> Iterable[str]:
    return config.judge_questions or LANGUAGES


def _parts(text: str) -> tuple[str, str]:
    """Split the name of a held-out text into language and variant: `lt.news` is a second text in Lithuanian."""
    language, _, variant = text.partition(".")
    return language, variant


def _cells(task: Task, language: str, config: EvaluateConfig) -> list[Cell]:
    """Return a task in one language for each of `prompts`; once if the prompt has no words to translate."""
    translatable = task.worded and language != "en"
    variants = ["native" if prompt == "native" and translatable else "" for prompt in config.prompts]
    return [_cell(task, language, variant, config) for variant in dict.fromkeys(variants)]


def _cell(task: Task, language: str, variant: str, config: EvaluateConfig) -> Cell:
    token_ratio = 1.0 if language == "en" else 1.5  # tokenizers need more tokens for other languages
    return Cell(
        task=task.name,
        language=language,
        variant=variant,
        suite="fluency" if task in FLUENCY else language,
        shots=0 if task.kind in ("perplexity", "judged") else config.shots.get(task.name, 0),
        metric=task.metric,
        filter=task.filter,
        chance=task.chance,
        higher_is_better=task.higher_is_better,
        cost=task.cost * token_ratio,
    )


def _lm_eval_cell(name: str, config: EvaluateConfig) -> Cell:
    """Return the cell of a task of lm-eval or of the user's own YAML, by its name there."""
    installed = _lm_eval_names(config.include)
    task, _, language = name.rpartition(".")
    if installed is not None and name not in installed and task not in installed:
        ours = [*SUITES, *TASKS, *(f"{task}.{language}" for task in TASKS for language in LANGUAGES)]
        hint = did_you_mean(name, [*ours, *installed])
        if not hint.startswith("; did"):
            hint = f"; known: {', '.join(ours[: len(SUITES) + len(TASKS)])}, and lm-eval's own (`lm-eval ls tasks`)"
        raise ConfigError(f"evaluate.suites: unknown suite, cell or task '{name}'{hint}")
    if not task or (installed is not None and name in installed):
        task, language = name, UNDETERMINED
    if not (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", task) and LANGUAGE.fullmatch(language)):
        raise ConfigError(
            f"evaluate.suites: '{name}': allowed is a task of lm-eval, also with a language of small letters, such as "
            "xcopa_et.et"
        )
    return Cell(task, language, suite=task, shots=config.shots.get(task), cost=UNKNOWN_COST)


@cache
def _lm_eval_names(include: tuple[str, ...] = ()) -> frozenset[str] | None:
    """Return the tasks, groups and tags of lm-eval and of the folders `include`; None if lm-eval is not installed.

    Reads its files without importing it: 14,000 files in about a second.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        return None
    pattern = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?:[ \t]*[\"']?([A-Za-z0-9_.+-]+)", re.MULTILINE)
    names: set[str] = set()
    for folder in (Path(spec.origin).parent / "tasks", *map(Path, include)):
        for path in folder.rglob("*.yaml"):
            names.update(match.decode() for match in pattern.findall(path.read_bytes()))
    return frozenset(names)
