"""An experiment as frozen dataclasses: every key of `sweeps/*.toml`, its type, range, default and meaning.

The dataclass fields are the TOML keys. `load_experiment` is strict: an unknown key, a wrong type or a value out of
range is one `ConfigError` that names file, key, value, what is allowed and the nearest name. `render_toml` writes an
experiment so that loading it gives the same object.

A field that `identifies` enters the hash that names the artefacts of its section (sweep.py); one that does not
(batch sizes of a rank, checkpointing, logging, resources) can change between two submits and nothing runs again.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc.errors import ConfigError, did_you_mean

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")
STAGES = ("tokens", "fisher", "train", "evaluate", "report")
LANGUAGE = re.compile(r"[a-z][a-z0-9_-]*")
"""It becomes part of the names of cells and of their files."""
INTEGER_BITS = 63
"""Of whole numbers, as TOML promises them."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    identifies: bool = True,
) -> Any:
    """A dataclass field with what is allowed: one of `choices`, or within [low, high], or > `above`."""
    metadata = {"choices": choices, "low": low, "high": high, "above": above, "identifies": identifies}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is trained."""

    path: str = option()
    """Hub id, folder of a Hugging Face checkpoint, or "miniature"."""
    revision: str | None = option(None)
    """Commit of the hub repository; absent: the one in the cache."""
    dtype: str = option("bfloat16", choices=("bfloat16", "float32"))
    """Of compute; the masters are fp32."""
    attention: str = option("auto", choices=("auto", "eager", "flex_attention", "flash_attention_2"))
    """Attention kernel; auto takes the fastest on the device that honours Gemma 2's softcap."""
    loss: str = option("chunked", choices=("chunked", "full", "liger"))
    """How head and cross-entropy are computed; chunked never holds all logits."""


@dataclass(frozen=True)
class DataConfig:
    """[data]: the text of the new language."""

    source: str = option()
    """Hub id, "files", or "miniature"."""
    subset: str = option("lt")
    """Configuration name of a hub data set; "" for none."""
    files: tuple[str, ...] = option(())
    """Paths or globs, when source = "files": .jsonl .parquet .txt, also .gz .zst."""
    text_column: str = option("text")
    """Column that holds the document."""
    language: str = option("lt", identifies=False)
    """Of the text; names the perplexity cell of its held-out documents."""
    fraction: float = option(0.1, above=0.0, high=1.0)
    """The first of the corpus, in document order."""
    expected_tokens: int | None = option(None, low=1, identifies=False)
    """How many these are, as far as is known before they are counted: for the forecast of a dry run alone."""
    heldout_documents: int = option(1000, low=0)
    """Chosen by hash, never trained on."""
    sequence_length: int = option(512, low=8)
    """Tokens of one sample."""
    packing: str = option("concatenate", choices=("concatenate", "truncate"))
    """concatenate: documents joined and cut; truncate: the first tokens of each document, as the paper's code."""
    on_bad_document: str = option("error", choices=("error", "skip"))
    """skip: counted in the manifest."""


@dataclass(frozen=True)
class FisherConfig:
    """[fisher]: what the importance of each parameter is measured on."""

    source: str = option("cais/mmlu")
    """Hub id, "files", or "miniature"."""
    subset: str = option("all")
    """Configuration name of a hub data set; "" for none."""
    files: tuple[str, ...] = option(())
    """Paths or globs, when source = "files"."""
    split: str = option("validation")
    """MMLU's validation is used by nothing else; the paper's own choice, test, contaminates the evaluation."""
    prompt: str = option("paper", choices=("paper", "text"))
    """paper: its MMLU prompt; text: the `text` column, or question and answer in words."""
    labels: str = option("gold", choices=("gold", "sampled"))
    """gold: empirical Fisher; sampled: drawn from the model, the true Fisher."""
    samples: int = option(1, low=1)
    """Draws for each example, when labels = "sampled"."""
    tokens: str = option("answer", choices=("answer", "all"))
    """Which tokens are scored."""
    method: str = option("batched", choices=("batched", "reduce_scatter"))
    """reduce_scatter is the slow oracle."""
    batch_size: int = option(8, low=1, identifies=False)
    """Examples of a rank at once; does not change the result."""
    max_examples: int | None = option(None, low=1)
    """Absent: all."""
    dtype: str = option("float32", choices=("float32", "bfloat16"))
    """How F is stored; it is summed in fp32."""
    on_nonfinite: str = option("error", choices=("error", "skip"))
    """skip: counted in the manifest."""
    seed: int = option(0, low=0)
    """Of the sampled labels."""


@dataclass(frozen=True)
class EwcConfig:
    """[ewc]: the penalty λ/2 Σ F_i (θ_i − θ*_i)² (Kirkpatrick et al. 2017, eq. 3)."""

    strength: float = option(0.0, low=0.0, high=1e30)
    """λ. Means nothing without its Fisher's scale: tr F is recorded beside it."""
    mode: str = option("gradient", choices=("gradient", "proximal"))
    """gradient: the paper's; proximal: an implicit step, exact at any λ."""
    clip: str = option("total", choices=("total", "task"))
    """total: the penalty's gradient is clipped with the task's; task: it is added after clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """[train]: optimizer, schedule, length."""

    learning_rate: float = option(2e-5, above=0.0, high=10.0)
    """Peak, of AdamW."""
    warmup_ratio: float = option(0.05, low=0.0, high=1.0)
    """Share of the steps over which the learning rate rises."""
    schedule: str = option("cosine", choices=("cosine", "linear", "constant"))
    """Decay after warm-up."""
    betas: tuple[float, float] = option((0.9, 0.999), low=0.0, high=0.999999)
    """Of AdamW."""
    eps: float = option(1e-8, above=0.0, high=1.0)
    """Of AdamW."""
    max_grad_norm: float = option(1.0, above=0.0, high=1e30)
    """The gradient is scaled down to this norm."""
    weight_decay: float = option(0.0, low=0.0, high=1.0)
    """Pulls to 0, against the anchor; the same for every λ, else λ = 0 is no control."""
    global_batch_size: int = option(64, low=1)
    """Sequences of one optimizer step, over all ranks."""
    local_batch_size: int = option(8, low=1, identifies=False)
    """Sequences a rank holds at once; the rest is accumulation."""
    epochs: float | None = option(None, above=0.0, high=1e6)
    """Passes over the tokens; or `steps`, one of the two. Both absent: 1.0."""
    steps: int | None = option(None, low=1)
    """Optimizer steps."""
    attend_across_documents: bool = option(True)
    """Within a sample, attention reaches into the documents before; false: each document sees itself alone."""
    export_at: tuple[float, ...] = option((1.0,), above=0.0, high=1.0)
    """Fractions of the run at which a Hugging Face checkpoint is written; ends in 1.0."""
    checkpoint_every_s: float = option(600.0, above=0.0, high=1e9, identifies=False)
    """Seconds between two checkpoints; one is also written at each stop."""
    keep_checkpoints: int = option(2, low=1, identifies=False)
    """Newest checkpoints that are kept while the run goes on."""
    keep_every: int | None = option(None, low=1, identifies=False)
    """Also keep the checkpoints at multiples of this step."""
    keep_optimizer: bool = option(True, identifies=False)
    """False: a finished run keeps its last weights alone; checkpoints with the optimizer's state are removed."""
    activation_checkpointing: str = option("none", choices=("none", "selective", "full"), identifies=False)
    """Recompute activations in the backward: less memory, more time."""
    compile: bool = option(False, identifies=False)
    """torch.compile of each layer."""
    dp_replicate: int = option(1, low=1, identifies=False)
    """Replicas of the sharded model (HSDP); the rest of the ranks is the shard axis."""
    watchdog_s: float = option(1800.0, above=0.0, high=1e9, identifies=False)
    """A run that makes no step for this long dumps its stacks and ends."""
    log_every: int = option(1, low=1, identifies=False)
    """Steps between two lines of metrics.jsonl."""
    seed: int = option(0, low=0)
    """Of the data order."""


@dataclass(frozen=True)
class EvaluateConfig:
    """[evaluate]: which checkpoints are asked which tasks."""

    suites: tuple[str, ...] = option(("en", "lt", "fluency"))
    """Suites, or single cells such as arc_easy.lt, or names of lm-eval tasks."""
    include: tuple[str, ...] = option(())
    """Folders of further lm-eval task files (YAML)."""
    heldout: dict[str, str] = option({})
    """Files of held-out text, such as en = "a.jsonl" or "lt.news" = "b.jsonl"; the corpus' own needs none."""
    questions: str | None = option(None)
    """Folder of rows to ask instead of the hub's data sets: <language>/<task>/<split>.jsonl, docs/evaluation.md."""
    cloze: bool | None = option(None)
    """MMLU and Belebele ask for the answer's words, not its letter: for small models. Absent: for the miniature's."""
    max_gen_toks: int | None = option(None, low=1)
    """Length of a generated answer; absent: lm-eval's, for the miniature 32."""
    judge: str | None = option(None)
    """Model whose perplexity of the answers is asked in `judged_answers`; hub id or folder. Absent: no such cell."""
    judge_questions: dict[str, str] = option({})
    """Files of what is answered then, by language, {"question": …} a line; absent: TruthfulQA's questions."""
    judge_tokens: int = option(128, low=1)
    """Length of such an answer, at most."""
    checkpoints: str = option("final")
    """Which of the exports: final, all, or "every 2" (the second, fourth, …, and the last)."""
    base: bool = option(True)
    """Evaluate the untrained model too: differences are to it."""
    shots: dict[str, int] = option({"gsm8k": 5, "mmlu": 5}, low=0, high=100)
    """Worked examples in the prompt, by task; 0 for the others."""
    prompts: tuple[str, ...] = option(("core",), choices=("core", "native"))
    """core: the words around the question as in lm-eval; native: in the task's own language."""
    backend: str = option("hf", choices=("hf", "vllm"))
    """What runs the model for lm-eval."""
    backend_args: str = option("")
    """Further arguments of vllm, as of lm-eval's --model_args: gpu_memory_utilization=0.8,enforce_eager=True."""
    batch_size: int = option(16, low=1)
    """Requests at once; recorded, since it changes generated scores (lm-eval#2498)."""
    max_length: int = option(2048, low=8)
    """Tokens of context."""
    limit: int | None = option(None, low=1)
    """First documents of each task; absent: all."""
    seed: int = option(1234, low=0)
    """Of few-shot sampling."""


@dataclass(frozen=True)
class Resources:
    """[resources.<stage>]: what one job of a stage asks for. Absent keys take the stage's default."""

    nodes: int | None = option(None, low=1, identifies=False)
    """Machines."""
    nproc_per_node: int | None = option(None, low=1, identifies=False)
    """Ranks on each; absent: gpus_per_node, else 1."""
    gpus_per_node: int | None = option(None, low=0, identifies=False)
    """GPUs on each."""
    cpus_per_task: int | None = option(None, low=1, identifies=False)
    """CPU cores on each (one Slurm task a node)."""
    mem_gb: int | None = option(None, low=1, identifies=False)
    """Memory on each."""
    time_min: int | None = option(None, low=1, identifies=False)
    """Time limit."""
    elements: int | None = option(None, low=1, identifies=False)
    """Array elements: for tokens of the corpus, for evaluate of each checkpoint."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: what is trained on what, held by which Fisher, over which grid, asked which tasks."""

    model: ModelConfig
    data: DataConfig
    fisher: FisherConfig = dataclasses.field(default_factory=FisherConfig)
    ewc: EwcConfig = dataclasses.field(default_factory=EwcConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    grid: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Values by dotted key, such as {"ewc.strength": (0.0, 1e6)}; the runs are their product."""
    resources: dict[str, Resources] = dataclasses.field(default_factory=dict)


SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "fisher": FisherConfig,
    "ewc": EwcConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
GRID_SECTIONS = ("model", "data", "fisher", "ewc", "train")


# ---------------------------------------------------------------------------------------------- reading


def load_experiment(path: Path | str) -> Experiment:
    """The experiment in a TOML file, checked whole.

    Raises:
        ConfigError: no such file, not TOML, unknown key, wrong type, value out of range, a grid that cannot be.
    """
    path = Path(path)
    return build_experiment(load_toml(path), str(path))


def load_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; ConfigError where it cannot be read."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark in front
        _check_integers(table, str(path))
        return table
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as that"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: brackets are nested too deep") from None
    except ValueError as error:  # a TOMLDecodeError; of a number with thousands of digits its parent alone
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _check_integers(value: Any, where: str, key: str = "") -> None:
    """Python reads whole numbers of any length, and then cannot turn the longest into a float or into text."""
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        bits = value.bit_length()
        raise ConfigError(f"{where}: {key}: a whole number of {bits} bits; allowed are at most {INTEGER_BITS}")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_integers(item, where, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for item in value:
            _check_integers(item, where, key)


def build_experiment(table: Mapping[str, Any], where: str) -> Experiment:
    """The experiment a table describes; `where` is the file that errors name."""
    known = [*SECTIONS, "grid", "resources"]
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown table '{key}'{did_you_mean(key, known)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: '{key}' must be a table [{key}], not {value!r}")
    parts = {name: build_section(cls, table.get(name, {}), name, where) for name, cls in SECTIONS.items()}
    resources = build_resources(table.get("resources", {}), where)
    grid = _build_grid(table.get("grid", {}), where)
    experiment = Experiment(**parts, grid=grid, resources=resources)
    check_together(experiment, where)
    return experiment


def build_resources(table: Mapping[str, Any], where: str) -> dict[str, Resources]:
    """[resources.<stage>] tables; the profile has the same shape."""
    result: dict[str, Resources] = {}
    for stage, values in table.items():
        if stage not in STAGES:
            raise ConfigError(f"{where}: unknown table 'resources.{stage}'{did_you_mean(stage, STAGES)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: 'resources.{stage}' must be a table, not {values!r}")
        result[stage] = build_section(Resources, values, f"resources.{stage}", where)
    return result


def build_section(cls: type[Any], values: Mapping[str, Any], name: str, where: str) -> Any:
    """One dataclass from one TOML table; every key and value checked against its field."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{name}.{key}'{did_you_mean(key, fields)}")
    checked = {
        key: check_value(value, fields[key], hints[key], f"{where}: {name}.{key}") for key, value in values.items()
    }
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in checked:
            raise ConfigError(f"{where}: '{name}.{key}' is required; {_first_line(cls, key)}")
    return cls(**checked)


def check_value(value: Any, field: dataclasses.Field[Any], hint: Any, label: str) -> Any:
    """`value` as the field's type, or a ConfigError that says what is allowed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{label} = {value!r}: must be a list")
        if Ellipsis not in args and len(value) != len(args):
            raise ConfigError(f"{label} = {value!r}: must have {len(args)} values")
        return tuple(_check_scalar(item, args[0], field, label) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{label} = {value!r}: must be a table")
        return {key: _check_scalar(item, args[1], field, f"{label}.{key}") for key, item in value.items()}
    return _check_scalar(value, hint, field, label)


def _check_scalar(value: Any, kind: type, field: dataclasses.Field[Any], label: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{label} = {value!r}: must be {names[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{label} = {value!r}: must be finite")
    if isinstance(value, str) and any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise ConfigError(f"{label} = {value!r}: must not hold control characters")
    limits = field.metadata
    if limits.get("choices") and value not in limits["choices"]:
        allowed = ", ".join(map(str, limits["choices"]))
        raise ConfigError(f"{label} = {value!r}: allowed are {allowed}{_near(str(value), limits['choices'])}")
    low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if too_low or (high is not None and value > high):
        left = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else "(-inf"
        raise ConfigError(f"{label} = {value!r}: allowed is {left}, {'inf)' if high is None else f'{high:g}]'}")
    return value


def _near(word: str, choices: tuple[Any, ...]) -> str:
    hint = did_you_mean(word, map(str, choices))
    return hint if hint.startswith("; did") else ""


def _build_grid(table: Mapping[str, Any], where: str) -> dict[str, tuple[Any, ...]]:
    """[grid]: shaped like the file, each leaf a list of values of that field."""
    grid: dict[str, tuple[Any, ...]] = {}
    for section, leaves in table.items():
        if section not in GRID_SECTIONS:
            reason = did_you_mean(section, GRID_SECTIONS)
            raise ConfigError(f"{where}: grid over unknown table 'grid.{section}'{reason}")
        if not isinstance(leaves, dict):
            raise ConfigError(f"{where}: 'grid.{section}' must name a key, such as ewc.strength = [0, 1e6]")
        fields = {field.name: field for field in dataclasses.fields(SECTIONS[section])}
        hints = typing.get_type_hints(SECTIONS[section])
        for key, values in leaves.items():
            label = f"{where}: grid.{section}.{key}"
            if key not in fields:
                raise ConfigError(f"{where}: grid over unknown key '{section}.{key}'{did_you_mean(key, fields)}")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{label} = {values!r}: must be a list of at least one value")
            if not fields[key].metadata["identifies"]:
                raise ConfigError(f"{label}: '{key}' changes no result, so its runs would be one run; take it out")
            grid[f"{section}.{key}"] = tuple(check_value(value, fields[key], hints[key], label) for value in values)
            if len(set(grid[f"{section}.{key}"])) < len(values):
                raise ConfigError(f"{label} = {values!r}: a value stands twice, which would be a duplicate run")
    return grid


def check_together(experiment: Experiment, where: str) -> None:
    """What no single field can say. ConfigError names the keys that disagree."""
    train, data, fisher = experiment.train, experiment.data, experiment.fisher
    lengths = [name for name in ("steps", "epochs") if getattr(train, name) or f"train.{name}" in experiment.grid]
    if len(lengths) > 1:
        raise ConfigError(f"{where}: train.steps and train.epochs are both set; keep one of the two")
    if not re.fullmatch(r"final|all|every [1-9][0-9]*", experiment.evaluate.checkpoints):
        raise ConfigError(
            f'{where}: evaluate.checkpoints = {experiment.evaluate.checkpoints!r}: allowed are final, all, "every 2"'
        )
    if not experiment.evaluate.prompts:
        raise ConfigError(f"{where}: evaluate.prompts = []: name at least one of core, native")
    if not LANGUAGE.fullmatch(data.language):
        raise ConfigError(f"{where}: data.language = {data.language!r}: must be small letters, such as lt")
    for exports in (train.export_at, *experiment.grid.get("train.export_at", ())):
        if not exports or exports[-1] != 1.0 or list(exports) != sorted(set(exports)):
            raise ConfigError(f"{where}: train.export_at = {list(exports)}: must rise and end in 1.0")
    for name, part in (("data", data), ("fisher", fisher)):
        if (part.source == "files") != bool(part.files):
            raise ConfigError(f'{where}: {name}.files and {name}.source = "files" go together; set both or neither')
    if fisher.labels == "gold" and fisher.samples != 1:
        raise ConfigError(f'{where}: fisher.samples = {fisher.samples}: only with fisher.labels = "sampled"')


# ---------------------------------------------------------------------------------------------- writing


def render_toml(experiment: Experiment, sections: tuple[str, ...] = tuple(SECTIONS)) -> str:
    """The experiment as TOML; `load_experiment` of it gives an equal object (for all `sections`).

    Absent keys (None) are left out. With fewer `sections`, required keys of the others are kept.
    """
    blocks: list[str] = []
    for name, cls in SECTIONS.items():
        part = getattr(experiment, name)
        lines = []
        for field in dataclasses.fields(cls):
            value = getattr(part, field.name)
            if value is None or (name not in sections and field.default is not dataclasses.MISSING):
                continue
            if name not in sections and field.default_factory is not dataclasses.MISSING:
                continue
            lines.append(f"{field.name} = {render_value(value)}")
        if lines:
            blocks.append("\n".join([f"[{name}]", *lines]))
    if experiment.grid:
        blocks.append("\n".join(["[grid]", *(f"{key} = {render_value(v)}" for key, v in experiment.grid.items())]))
    for stage, resources in experiment.resources.items():
        values = {key: value for key, value in dataclasses.asdict(resources).items() if value is not None}
        blocks.append("\n".join([f"[resources.{stage}]", *(f"{k} = {render_value(v)}" for k, v in values.items())]))
    return "\n\n".join(blocks) + "\n"


def render_value(value: Any) -> str:
    """One TOML value. Strings are basic strings: a key or a value never breaks out of its line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _render_string(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(render_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_render_string(key)} = {render_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _render_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if ord(c) >= 32 and ord(c) != 127 else f"\\u{ord(c):04x}" for c in escaped) + '"'


def replace_at(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with `values` by dotted key, such as {"ewc.strength": 1e6}, and no grid left."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        section, name = key.split(".")
        part = changed.get(section, getattr(experiment, section))
        changed[section] = dataclasses.replace(part, **{name: value})
    return dataclasses.replace(experiment, **changed, grid={})


def _first_line(cls: type[Any], key: str) -> str:
    return option_docs(cls).get(key, "")


def option_docs(cls: type[Any]) -> dict[str, str]:
    """The sentence under each field of a dataclass, by field name, read from its source."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = str(following.value.value)
    return docs
