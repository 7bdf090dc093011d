"""The forecast of a dry run: memory of a rank by part, disk by artefact, GPU-hours by stage. Formulas: forecast.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch.forecast import formulas
from hpc_ewc.launch.forecast.limits import exceeds, limit_of
from hpc_ewc.launch.forecast.shapes import Shape, find_shape
from hpc_ewc.launch.plan.graph import Node, gpu_hours
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.profile.gpus import Rates, rates
from hpc_ewc.launch.show.table import columns

FILES_A_JOB = 14
"""submitit's, the launcher's, and what ranks print; folders counted."""
SAMPLES_BYTES = 400_000
"""Of one cell's samples, compressed, to within a factor of ten."""
TEXT_BYTES_A_TOKEN = 3.0
"""Of a language with few tokens of its own in the vocabulary; where the tokens are not counted yet."""
PACKED = {".parquet": 2.5, ".gz": 3.0, ".zst": 3.0}
"""Bytes of text in a byte of a file, roughly."""
QUESTIONS = {("cais/mmlu", "validation"): 1531, ("cais/mmlu", "test"): 14042}
"""Rows of the Fisher's usual data; of other data, one for each BYTES_A_QUESTION of its files."""
BYTES_A_QUESTION = 500
JUDGES = {"neurotechnology/Lt-Llama-2-13b": 13.0e9}
"""Parameters of the paper's judge."""
PARTS = (
    "weights",
    "moments",
    "sums",
    "gradients",
    "F and θ*",
    "gathered",
    "activations",
    "loss",
    "checkpoint",
    "judge",
)
"""Of a rank's memory, as forecast.py names them, in the order of the table."""


@dataclass(frozen=True)
class Stage:
    """The prediction for one node; nan where it depends on something that is not known yet."""

    label: str
    ranks: int
    gpus: bool
    memory: tuple[tuple[str, float], ...] = ()
    """Bytes of a rank, by part."""
    kept: float = 0.0
    """Bytes on the disk when it is done."""
    most: float = 0.0
    """The same while it runs."""
    hours: float = 0.0
    """GPU-hours at the rates that are assumed."""
    files: int = 0
    time_min: int = 0
    """The time limit of one of its jobs."""

    @property
    def job_hours(self) -> float:
        """That a job of a stage with no elements runs: its ranks, a GPU each, share the GPU-hours."""
        return self.hours / self.ranks

    @property
    def total(self) -> float:
        """Bytes of a rank's memory."""
        return sum(size for _, size in self.memory)


class Forecast:
    """What the missing stages of a plan will take.

    Args:
        plan: what would be submitted.
        config: config.json of the model, where the model itself is not here.
    """

    def __init__(self, plan: Plan, config: Path | None = None) -> None:
        self.plan, self.config = plan, config
        self.shapes: dict[tuple[str, str], tuple[Shape | None, str]] = {}
        self.counted: dict[str, float] = {}
        self.by_folder = {str(node.folder.path): node for node in plan.graph.nodes.values()}

    @cached_property
    def rates(self) -> Rates:
        """Of the profile's GPUs."""
        return rates(self.plan.profile.gpu, self.plan.profile.gpu_tflops)

    @cached_property
    def stages(self) -> Counter[Stage]:
        """What each missing node will take, and how many take the same."""
        makers = {"tokens": self._tokens, "fisher": self._fisher, "train": self._train, "evaluate": self._evaluate}
        nodes = [self.plan.graph.nodes[name] for name in self.plan.jobs]
        return Counter(makers[node.stage](node) for node in nodes if node.stage in makers)

    def shape(self, node: Node) -> Shape | None:
        """Of the node's model, or of the one that it was trained from."""
        model = node.experiment.model.path
        at = node if "model" in node.inputs else self.by_folder.get(str(node.inputs.get("train")), node)
        key = (model, str(at.inputs.get("model", "")))
        if key not in self.shapes:
            self.shapes[key] = find_shape(key[0], Path(key[1]), self.config)
        return self.shapes[key][0]

    # ------------------------------------------------------------------------------------------ one stage each

    def _tokens(self, node: Node) -> Stage:
        size = _or_nan(4 * self.tokens(node))
        return Stage(
            "tokens", 1, False, kept=size, most=size, files=3 * len(node.inputs["files"]) + 5 + self._logs(node)
        )

    def _fisher(self, node: Node) -> Stage:
        experiment, shape, (ranks, gpus) = node.experiment, self.shape(node), _ranks(node)
        files = 2 * ranks + 6 + self._logs(node)
        if shape is None:
            return Stage("fisher", ranks, gpus, (), math.nan, math.nan, math.nan if gpus else 0.0, files)
        place = formulas.Place("cuda" if gpus else "cpu", ranks)
        memory = formulas.fisher_memory(shape, experiment.model, experiment.fisher, place)
        examples = self.questions(node)
        seconds = formulas.fisher_flop(shape, examples) / self.rates.fisher / 1e12
        seconds += formulas.fisher_square_bytes(shape, examples) / self.rates.bandwidth_tb_s / 1e12
        kept = formulas.fisher_disk(shape, experiment.fisher)
        most = kept + 4.0 * shape.parameters  # and the sums of a job that is stopped
        hours, time_min = seconds / 3600 if gpus else 0.0, node.resources.time_min
        return Stage("fisher", ranks, gpus, tuple(memory.items()), kept, most, hours, files, time_min)

    def _train(self, node: Node) -> Stage:
        experiment, shape, (ranks, gpus) = node.experiment, self.shape(node), _ranks(node)
        train, label = experiment.train, "train, λ > 0" if experiment.ewc.strength > 0 else "train, λ = 0"
        files = 8 * len(train.export_at) + (ranks + 3) * train.keep_checkpoints + 6 + self._logs(node)
        if shape is None:
            return Stage(label, ranks, gpus, (), math.nan, math.nan, math.nan if gpus else 0.0, files)
        held = formulas.held_bytes(experiment.ewc.strength, shape, experiment.fisher.dtype)
        place = formulas.Place("cuda" if gpus else "cpu", max(1, ranks // train.dp_replicate))
        memory = formulas.training_memory(shape, experiment.model, experiment.data, train, place, held)
        kept, most = formulas.training_disk(shape, experiment.model, train)
        flop = formulas.training_flop(shape, self.trained(node), experiment.data.sequence_length)
        hours = _or_nan(flop / self.rates.train / 3.6e15) if gpus else 0.0
        return Stage(label, ranks, gpus, tuple(memory.items()), kept, most, hours, files, node.resources.time_min)

    def _evaluate(self, node: Node) -> Stage:
        experiment, shape, (_, gpus) = node.experiment, self.shape(node), _ranks(node)
        missing = set(self.plan.found[node.id].missing or node.expected)
        size, files = float(SAMPLES_BYTES * len(missing)), 2 * len(missing) + 6 + self._logs(node)
        if shape is None:
            return Stage("evaluate", 1, gpus, (), size, size, math.nan if gpus else 0.0, files)
        cost = sum(cell.cost for at in node.fractions for cell in node.cells if cell.at(at) in missing)
        memory = formulas.evaluation_memory(shape, experiment.model, experiment.evaluate, self.judge(node))
        hours = formulas.evaluation_flop(shape, cost) / self.rates.evaluate / 3.6e15 if gpus else 0.0
        return Stage("evaluate", 1, gpus, tuple(memory.items()), size, size, hours, files)

    def _logs(self, node: Node) -> int:
        return FILES_A_JOB * self.plan.jobs[node.id]

    # ------------------------------------------------------------------------------------------ how much there is to do

    def trained(self, node: Node) -> float:
        """Tokens of one training: of its steps, or of its passes over the corpus."""
        train, data = node.experiment.train, node.experiment.data
        if train.steps is not None:
            return float(train.steps * train.global_batch_size * data.sequence_length)
        return (train.epochs or 1.0) * self.tokens(self.by_folder[node.inputs["tokens"]])

    def tokens(self, node: Node) -> float:
        """Tokens of a corpus: as counted, as `data.expected_tokens` says, or by the size of its files; else nan."""
        if node.id not in self.counted:
            self.counted[node.id] = self._count(node)
        return self.counted[node.id]

    def _count(self, node: Node) -> float:
        data = node.experiment.data
        with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError):
            counted = records.read_json(node.folder.done)["summary"]
            return float(counted["samples"] * counted["sequence_length"])
        if data.expected_tokens is not None:
            return float(data.expected_tokens)
        files = node.inputs["files"]
        return _text_bytes(files) * data.fraction / TEXT_BYTES_A_TOKEN if files else math.nan

    def questions(self, node: Node) -> float:
        """Examples of a Fisher, each counted once for every draw."""
        fisher = node.experiment.fisher
        known = QUESTIONS.get((fisher.source, fisher.split))
        there = known or max(1, round(_text_bytes(node.inputs["questions"]) / BYTES_A_QUESTION))
        return fisher.samples * float(min(there, fisher.max_examples or there))

    def judge(self, node: Node) -> float:
        """Parameters of the model that reads answers: by its files, in 2 bytes each, or as is known; else 0."""
        if node.experiment.evaluate.judge is None:
            return 0.0
        files = Path(node.inputs["judge"]["folder"]).glob("*.safetensors")
        return sum(path.stat().st_size for path in files) / 2 or JUDGES.get(node.experiment.evaluate.judge, 0.0)

    # ------------------------------------------------------------------------------------------ words

    def lines(self) -> Iterator[str]:
        """The whole formulas, for people."""
        if not self.stages:
            return
        yield "forecast, by the formulas of docs/scaling.md; nothing of it is measured"
        for (name, _), (shape, source) in self.shapes.items():
            size = f"{shape.parameters / 1e9:.3g} billion parameters, {source}" if shape else f"unknown shape; {source}"
            yield f"  model {name}: {size}"
        yield from self._memory_lines()
        yield from self._disk_lines()
        yield from self._hour_lines()

    def _memory_lines(self) -> Iterator[str]:
        room = self.plan.profile.gpu_memory_gb or self.rates.memory_gb
        unit, size = _unit(max(stage.total for stage in self.stages))
        table: list[Sequence[str]] = [(f"  {unit} of a rank", "ranks", *PARTS, "sum", "of")]
        over = []
        for stage, count in self.stages.items():
            parts = dict(stage.memory)
            if parts:
                cells = [f"{parts[name] / size:.1f}" if name in parts else "" for name in PARTS]
                of, total = f"{1e9 * room / size:.0f}" if stage.gpus else "", f"{stage.total / size:.1f}"
                table.append((f"  {stage.label}{_times(count)}", str(stage.ranks), *cells, total, of))
                over += [stage.label] if stage.gpus and stage.total > 1e9 * room else []
        if len(table) > 1:
            yield columns(table)
        if over:
            yield (
                f"  more than a GPU has: {', '.join(over)}; a smaller local_batch_size or batch_size, "
                'train.activation_checkpointing = "full", or more ranks'
            )

    def _disk_lines(self) -> Iterator[str]:
        kept = sum(stage.kept * count for stage, count in self.stages.items())
        files = sum(stage.files * count for stage, count in self.stages.items())
        unit, size = _unit(kept)
        yield f"disk: about {_known(kept / size)} {unit} in {files:,} files (inodes) when all is done"
        parts = []
        for stage, count in self.stages.items():
            most = f" ({_known(stage.most / size)} while it runs)" if stage.most > stage.kept else ""
            parts.append(f"{stage.label}{_times(count)} {_known(stage.kept / size)}{most}")
        yield f"  {unit} by artefact: {'; '.join(parts)}"

    def _hour_lines(self) -> Iterator[str]:
        asked = gpu_hours(self.plan.graph, self.plan.jobs)
        if not asked:
            return
        hours = sum(stage.hours * count for stage, count in self.stages.items())
        parts = [f"{stage.label}{_times(n)} {_known(stage.hours)}" for stage, n in self.stages.items() if stage.gpus]
        yield f"GPU-hours: about {_known(hours)}, by FLOP; up to {asked:.1f} GPU-hours, by time limits"
        yield f"  by stage: {'; '.join(parts)}"
        yield f"  at an assumed {self.rates.stated}; gpu_tflops of the profile says better"
        if math.isnan(hours):
            yield "  unknown: the tokens of the corpus, or the model's shape; say data.expected_tokens, --config"
        yield from self._limit_lines()

    def _limit_lines(self) -> Iterator[str]:
        """Fisher or training that will need more than one job's time; a local job has no limit."""
        if self.plan.profile.executor != "slurm":
            return
        for stage, count in self.stages.items():
            name = stage.label.split(",")[0]
            if stage.gpus and stage.time_min:
                limit = limit_of(stage.time_min, self.plan.profile.slurm.of(name))
                line = exceeds(name, f"{stage.label}{_times(count)}", stage.job_hours, limit)
                yield from [f"  longer than its time limit, at that rate: {line}"] if line else []


def _ranks(node: Node) -> tuple[int, bool]:
    """How many, and whether on GPUs."""
    return node.resources.nodes * node.resources.nproc_per_node, node.resources.gpus_per_node > 0


def _text_bytes(names: Sequence[str]) -> float:
    """Text in files, by their sizes."""
    paths = [path for path in map(Path, names) if path.is_file()]
    return sum(path.stat().st_size * PACKED.get(path.suffix, 1.0) for path in paths)


def _or_nan(value: float) -> float:
    """The value; a nan as one and the same object, since two are not equal and would not count as alike."""
    return math.nan if math.isnan(value) else value


def _unit(size: float) -> tuple[str, float]:
    """What a column of such sizes is in: GB, or MB where all are below one."""
    return ("MB", 1e6) if size < 1e9 else ("GB", 1e9)


def _known(value: float) -> str:
    if math.isnan(value):
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _times(count: int) -> str:
    return f" × {count}" if count > 1 else ""
