"""The forecast of a dry run: memory of a rank by part, disk by artefact, GPU-hours by stage and by time limits."""

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
from hpc_ewc.launch.forecast.formulas import Parts
from hpc_ewc.launch.forecast.shapes import Shape, find_shape
from hpc_ewc.launch.plan.graph import Node, gpu_hours
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.profile.gpus import Rates, rates
from hpc_ewc.launch.profile.keys import SlurmConfig
from hpc_ewc.launch.show.table import columns

FILES_PER_JOB = 14
"""Files of submitit and the launcher, and the output of ranks; folders included."""
SAMPLES_BYTES = 400_000
"""Compressed samples of one cell, to within a factor of ten."""
BYTES_PER_TOKEN = 3.0
"""Text per token, until the tokens are counted, for a language with few tokens of its own in the vocabulary."""
COMPRESSION = {".parquet": 2.5, ".gz": 3.0, ".zst": 3.0}
"""Bytes of text per byte of a file, roughly."""
QUESTIONS = {("cais/mmlu", "validation"): 1531, ("cais/mmlu", "test"): 14042}
"""Rows of the usual data of the Fisher; other data is taken to have one per BYTES_PER_QUESTION of its files."""
BYTES_PER_QUESTION = 500
JUDGES = {"neurotechnology/Lt-Llama-2-13b": 13.0e9}
"""Parameters of the paper's judge."""
PARTS = (
    "weights", "moments", "sums", "gradients", "F and θ*", "gathered", "activations", "loss", "checkpoint", "judge",
)  # fmt: skip
"""The parts of a rank's memory in the order of the table, named as in formulas.py."""


@dataclass(frozen=True)
class Stage:
    """The forecast for one node of the graph; nan where it depends on something that is not known yet."""

    label: str
    ranks: int
    gpus: bool
    files: int
    time_min: int
    """Time limit of one of its jobs."""
    memory: tuple[tuple[str, float], ...]
    """Bytes of a rank, by part."""
    kept: float
    """Bytes on the disk when it is done."""
    most: float
    """Peak of the bytes on the disk while it runs."""
    hours: float
    """GPU-hours at the assumed rates."""

    @property
    def total(self) -> float:
        """Bytes of a rank's memory."""
        return sum(size for _, size in self.memory)


class Forecast:
    """The forecast for the missing stages of a plan.

    Args:
        plan: what would be submitted.
        config: config.json of the model, where the model itself is not on this machine.
    """

    def __init__(self, plan: Plan, config: Path | None = None) -> None:
        self.plan, self.config = plan, config
        self.rates: Rates = rates(plan.profile.gpu, plan.profile.gpu_tflops)
        self.shapes: dict[tuple[str, str], tuple[Shape | None, str]] = {}
        self.tokens: dict[str, float] = {}
        self.by_folder = {str(node.folder.path): node for node in plan.graph.nodes.values()}

    @cached_property
    def stages(self) -> Counter[Stage]:
        """The forecast of each missing node, and how many nodes have the same one."""
        nodes = [self.plan.graph.nodes[name] for name in self.plan.jobs]
        return Counter(self._stage(node) for node in nodes if node.stage in ("tokens", "fisher", "train", "evaluate"))

    # ------------------------------------------------------------------------------------------ one node each

    def _stage(self, node: Node) -> Stage:
        resources, train = node.resources, node.experiment.train
        label, ranks = node.stage, resources.nodes * resources.nproc_per_node
        gpus = resources.gpus_per_node > 0 and node.stage != "tokens"
        memory: Parts = {}
        kept = most = hours = math.nan
        if node.stage == "tokens":
            ranks, files = 1, 3 * len(node.inputs["files"]) + 5
            kept = most = 4 * self._tokens(node)
        elif node.stage == "evaluate":
            ranks, cells = 1, len(self._missing_cells(node))
            kept = most = float(SAMPLES_BYTES * cells)
            files = 2 * cells + 6
        elif node.stage == "fisher":
            files = 2 * ranks + 6
        else:
            label = "train, λ > 0" if node.experiment.ewc.strength > 0 else "train, λ = 0"
            files = 8 * len(train.export_at) + (ranks + 3) * train.keep_checkpoints + 6
        if node.stage != "tokens" and (shape := self._shape(node)) is not None:
            device = "cuda" if gpus else "cpu"
            if node.stage == "fisher":
                memory, kept, most, hours = self._fisher(node, shape, formulas.Place(device, ranks))
            elif node.stage == "train":
                place = formulas.Place(device, max(1, ranks // train.dp_replicate))
                memory, kept, most, hours = self._train(node, shape, place)
            else:
                memory, hours = self._evaluate(node, shape)
        # the same nan each time, since only then are two stages equal
        sizes = [math.nan if math.isnan(size) else size for size in (kept, most, hours if gpus else 0.0)]
        files += FILES_PER_JOB * self.plan.jobs[node.id]
        return Stage(label, ranks, gpus, files, resources.time_min, tuple(memory.items()), *sizes)

    def _fisher(self, node: Node, shape: Shape, place: formulas.Place) -> tuple[Parts, float, float, float]:
        """Memory, bytes kept, bytes at most, GPU-hours."""
        fisher, model = node.experiment.fisher, node.experiment.model
        examples = self._questions(node)
        seconds = formulas.fisher_flop(shape, examples) / self.rates.fisher / 1e12
        seconds += formulas.fisher_square_bytes(shape, examples) / self.rates.bandwidth_tb_s / 1e12
        kept = formulas.fisher_disk(shape, fisher)
        sums = 4.0 * shape.parameters  # saved by a job that is stopped
        return formulas.fisher_memory(shape, model, fisher, place), kept, kept + sums, seconds / 3600

    def _train(self, node: Node, shape: Shape, place: formulas.Place) -> tuple[Parts, float, float, float]:
        experiment = node.experiment
        model, data, train = experiment.model, experiment.data, experiment.train
        penalty = formulas.penalty_bytes(experiment.ewc.strength, shape, experiment.fisher.dtype)
        flop = formulas.training_flop(shape, self._trained_tokens(node), data.sequence_length)
        kept, most = formulas.training_disk(shape, model, train)
        memory = formulas.training_memory(shape, model, data, train, place, penalty)
        return memory, kept, most, flop / self.rates.train / 3.6e15

    def _evaluate(self, node: Node, shape: Shape) -> tuple[Parts, float]:
        experiment, missing = node.experiment, self._missing_cells(node)
        cost = sum(cell.cost for at in node.fractions for cell in node.cells if cell.at(at) in missing)
        memory = formulas.evaluation_memory(shape, experiment.model, experiment.evaluate, self._judge(node))
        return memory, formulas.evaluation_flop(shape, cost) / self.rates.evaluate / 3.6e15

    def _shape(self, node: Node) -> Shape | None:
        """The shape of the node's model, or of the one that it was trained from."""
        trained = node if "model" in node.inputs else self.by_folder.get(str(node.inputs.get("train")), node)
        key = node.experiment.model.path, str(trained.inputs.get("model", ""))
        if key not in self.shapes:
            self.shapes[key] = find_shape(key[0], Path(key[1]), self.config)
        return self.shapes[key][0]

    def _missing_cells(self, node: Node) -> set[str]:
        return set(self.plan.found[node.id].missing or node.expected)

    # ------------------------------------------------------------------------------------------ amounts of data

    def _trained_tokens(self, node: Node) -> float:
        """Tokens of one training: of its steps, or of its passes over the corpus."""
        train, data = node.experiment.train, node.experiment.data
        if train.steps is not None:
            return float(train.steps * train.global_batch_size * data.sequence_length)
        return (train.epochs or 1.0) * self._tokens(self.by_folder[node.inputs["tokens"]])

    def _tokens(self, node: Node) -> float:
        """Tokens of a corpus: as counted, else `data.expected_tokens`, else by the size of its files; else nan."""
        if node.id not in self.tokens:
            data, files = node.experiment.data, node.inputs["files"]
            guess = _text_bytes(files) * data.fraction / BYTES_PER_TOKEN if files else math.nan
            self.tokens[node.id] = float(data.expected_tokens or guess)
            with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError):
                counted = records.read_json(node.folder.done)["summary"]
                self.tokens[node.id] = float(counted["samples"] * counted["sequence_length"])
        return self.tokens[node.id]

    def _questions(self, node: Node) -> float:
        """Examples of a Fisher, each counted once per draw."""
        fisher = node.experiment.fisher
        rows = QUESTIONS.get((fisher.source, fisher.split))
        rows = rows or max(1, round(_text_bytes(node.inputs["questions"]) / BYTES_PER_QUESTION))
        return fisher.samples * float(min(rows, fisher.max_examples or rows))

    def _judge(self, node: Node) -> float:
        """Parameters of the model that judges answers, by its files at 2 bytes each, or by its name; else 0."""
        if node.experiment.evaluate.judge is None:
            return 0.0
        files = Path(node.inputs["judge"]["folder"]).glob("*.safetensors")
        return sum(path.stat().st_size for path in files) / 2 or JUDGES.get(node.experiment.evaluate.judge, 0.0)

    # ------------------------------------------------------------------------------------------ lines

    def lines(self) -> Iterator[str]:
        """The forecast, line by line."""
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
        capacity = 1e9 * (self.plan.profile.gpu_memory_gb or self.rates.memory_gb)
        unit, size = _unit(max(stage.total for stage in self.stages))
        table: list[Sequence[str]] = [(f"  {unit} of a rank", "ranks", *PARTS, "sum", "of")]
        for stage, count in self.stages.items():
            parts = dict(stage.memory)
            if parts:
                cells = [f"{parts[name] / size:.1f}" if name in parts else "" for name in PARTS]
                of = f"{capacity / size:.0f}" if stage.gpus else ""
                label = f"  {stage.label}{_times(count)}"
                table.append((label, str(stage.ranks), *cells, f"{stage.total / size:.1f}", of))
        if len(table) > 1:
            yield columns(table)
        if over := [stage.label for stage in self.stages if stage.gpus and stage.total > capacity]:
            yield (
                f"  more than a GPU has: {', '.join(over)}; a smaller local_batch_size or batch_size, "
                'train.activation_checkpointing = "full", or more ranks'
            )

    def _disk_lines(self) -> Iterator[str]:
        kept = sum(stage.kept * count for stage, count in self.stages.items())
        files = sum(stage.files * count for stage, count in self.stages.items())
        unit, size = _unit(kept)
        yield f"disk: about {_number(kept / size)} {unit} in {files:,} files (inodes) when all is done"
        parts = []
        for stage, count in self.stages.items():
            most = f" ({_number(stage.most / size)} while it runs)" if stage.most > stage.kept else ""
            parts.append(f"{stage.label}{_times(count)} {_number(stage.kept / size)}{most}")
        yield f"  {unit} by artefact: {'; '.join(parts)}"

    def _hour_lines(self) -> Iterator[str]:
        """GPU-hours, and each Fisher or training that needs more than the time of one job."""
        bound = gpu_hours(self.plan.graph, self.plan.jobs)
        if not bound:
            return
        on_gpus = {stage: count for stage, count in self.stages.items() if stage.gpus}
        hours = sum(stage.hours * count for stage, count in on_gpus.items())
        parts = [f"{stage.label}{_times(count)} {_number(stage.hours)}" for stage, count in on_gpus.items()]
        yield f"GPU-hours: about {_number(hours)}, by FLOP; up to {bound:.1f} GPU-hours, by time limits"
        yield f"  by stage: {'; '.join(parts)}"
        yield f"  at an assumed {self.rates.stated}; set gpu_tflops in the profile for a better estimate"
        if math.isnan(hours):
            yield "  unknown: the tokens of the corpus, or the model's shape; set data.expected_tokens or give --config"
        profile = self.plan.profile
        for stage, count in on_gpus.items():
            name = stage.label.split(",")[0]
            if profile.executor == "slurm" and name in ("fisher", "train"):  # one job, whose ranks share the GPU-hours
                label, hours = f"{stage.label}{_times(count)}", stage.hours / stage.ranks
                if line := describe_excess(name, label, hours, stage.time_min, profile.slurm.of(name)):
                    yield f"  longer than its time limit, at that rate: {line}"


def describe_excess(stage: str, label: str, hours: float, time_min: int, slurm: SlurmConfig) -> str | None:
    """How a job continues that needs more than its time limit; None if it fits, or if `hours` is nan.

    Args:
        stage: whose `time_min` the limit is.
        label: name of the stage in the forecast.
        hours: expected running time, without queueing.
        time_min: limit of one job, which is told to save `signal_delay_s` earlier.
        slurm: of the stage; a job is requeued as often as needed, or followed by the `successors` of a chain.
    """
    usable = (time_min * 60 - slurm.signal_delay_s) / 3600
    if math.isnan(hours) or hours <= usable:
        return None
    needed, chain = math.ceil(hours / usable), 1 + slurm.successors
    needs = f"{label} runs {_hours(hours)}, a job has {_hours(time_min / 60)} (resources.{stage}.time_min)"
    if slurm.continuation != "chain":
        often = "once" if needed == 2 else f"{needed - 1} times"
        return f"{needs}: Slurm starts it again {often}, from the last checkpoint each time"
    if needed <= chain:
        return f"{needs}: {needed} of the {chain} jobs of its chain"
    return (
        f"{needs}: does not fit its chain of {chain} jobs, {_hours(chain * usable)}: slurm.successors = {needed - 1} "
        "or a longer time_min, more GPUs; or submit again when the chain has ended"
    )


# ---------------------------------------------------------------------------------------------- numbers


def _text_bytes(names: Sequence[str]) -> float:
    """Bytes of text in files, by their sizes."""
    paths = [path for path in map(Path, names) if path.is_file()]
    return sum(path.stat().st_size * COMPRESSION.get(path.suffix, 1.0) for path in paths)


def _unit(size: float) -> tuple[str, float]:
    return ("MB", 1e6) if size < 1e9 else ("GB", 1e9)


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _number(value: float) -> str:
    if math.isnan(value):
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _times(count: int) -> str:
    return f" × {count}" if count > 1 else ""
