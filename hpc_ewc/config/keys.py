"""All keys of `sweeps/*.toml` as fields of frozen dataclasses: type, range, default and description.

A field with `identifies` enters the hash that names the artefacts of its section (sweep.py). One without it (batch size
of a rank, checkpointing, logging, resources) can change between two submits, and nothing runs again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_ewc.config.fields import option

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")
STAGES = ("tokens", "fisher", "train", "evaluate", "report")
LANGUAGE = re.compile(r"[a-z][a-z0-9_-]*")
"""A language is part of the names of cells and of their files."""


@dataclass(frozen=True)
class ModelConfig:
    """[model]: the model to train."""

    path: str = option()
    """Hub id, or folder of a Hugging Face checkpoint."""
    revision: str | None = option(None)
    """Commit of the hub repository; absent: the one in the cache."""
    dtype: str = option("bfloat16", choices=("bfloat16", "float32"))
    """Data type of compute; master weights are fp32."""
    attention: str = option("auto", choices=("auto", "eager", "flex_attention", "flash_attention_2"))
    """Attention kernel; auto: the fastest on the device that applies Gemma 2's soft cap."""
    loss: str = option("chunked", choices=("chunked", "full", "liger"))
    """Implementation of head and cross-entropy; chunked never holds all logits at once."""


@dataclass(frozen=True)
class DataConfig:
    """[data]: the text of the new language."""

    source: str = option()
    """Hub id, or "files"."""
    subset: str = option("lt")
    """Configuration name of a hub data set; "" for none."""
    files: tuple[str, ...] = option(())
    """Paths or globs, when source = "files": .jsonl .parquet .txt, also .gz .zst."""
    text_column: str = option("text")
    """Column that holds the document."""
    language: str = option("lt", identifies=False)
    """Language of the text; names the perplexity cell of its held-out documents, ppl_heldout.LANGUAGE."""
    fraction: float = option(0.1, above=0.0, high=1.0)
    """Share of the corpus to use: its first documents, in order."""
    expected_tokens: int | None = option(None, low=1, identifies=False)
    """Your estimate of the tokens in that share; a dry run's forecast uses it until they are counted."""
    heldout_documents: int = option(1000, low=0)
    """Number of documents, chosen by hash, that are never trained on."""
    sequence_length: int = option(512, low=8)
    """Tokens of one sample."""
    packing: str = option("concatenate", choices=("concatenate", "truncate"))
    """concatenate: documents joined and cut; truncate: the first tokens of each document, as the paper's code."""
    on_bad_document: str = option("error", choices=("error", "skip"))
    """error: stop at the first; skip: omit them and count them in the manifest."""


@dataclass(frozen=True)
class FisherConfig:
    """[fisher]: the data on which the importance of each parameter is measured."""

    source: str = option("cais/mmlu")
    """Hub id, or "files"."""
    subset: str = option("all")
    """Configuration name of a hub data set; "" for none."""
    files: tuple[str, ...] = option(())
    """Paths or globs, when source = "files"."""
    split: str = option("validation")
    """Split of the data set. Nothing else uses MMLU's validation; the paper's choice, test, is also evaluated."""
    prompt: str = option("paper", choices=("paper", "text"))
    """paper: the paper's MMLU prompt; text: the `text` column, or question and answer in words."""
    labels: str = option("gold", choices=("gold", "sampled"))
    """gold: empirical Fisher; sampled: drawn from the model, the true Fisher."""
    samples: int = option(1, low=1)
    """Draws per example, when labels = "sampled"."""
    tokens: str = option("answer", choices=("answer", "all"))
    """The tokens whose log-likelihood is differentiated: those of the answer, or all."""
    method: str = option("batched", choices=("batched", "reduce_scatter"))
    """Implementation: batched, or the slow reduce_scatter that tests compare it with."""
    batch_size: int = option(8, low=1, identifies=False)
    """Examples per batch on a rank; does not change the result."""
    max_examples: int | None = option(None, low=1)
    """Use only this many examples, the first; absent: all."""
    dtype: str = option("float32", choices=("float32", "bfloat16"))
    """Data type of the stored Fisher; it is summed in fp32."""
    on_nonfinite: str = option("error", choices=("error", "skip"))
    """Non-finite gradients. error: stop; skip: omit the example and count it in the manifest."""
    seed: int = option(0, low=0)
    """Seed of the sampled labels."""


@dataclass(frozen=True)
class EwcConfig:
    """[ewc]: the penalty λ/2 Σ F_i (θ_i − θ*_i)² (Kirkpatrick et al. 2017, eq. 3)."""

    strength: float = option(0.0, low=0.0, high=1e30)
    """λ. Its meaning depends on the scale of the Fisher: tr F is recorded with it."""
    mode: str = option("gradient", choices=("gradient", "proximal"))
    """gradient: as in the paper; proximal: an implicit step, exact at any λ."""
    clip: str = option("total", choices=("total", "task"))
    """total: clip the sum of the task's and the penalty's gradient; task: add the penalty's after clipping."""
    update: str = option("auto", choices=("auto", "apart", "one_pass"), identifies=False)
    """Penalty, clipping and AdamW separately or in one compiled pass; auto: one pass on a GPU in mode gradient."""


@dataclass(frozen=True)
class TrainConfig:
    """[train]: optimizer, schedule, length."""

    learning_rate: float = option(2e-5, above=0.0, high=10.0)
    """Peak learning rate of AdamW."""
    warmup_ratio: float = option(0.05, low=0.0, high=1.0)
    """Share of the steps during which the learning rate rises."""
    schedule: str = option("cosine", choices=("cosine", "linear", "constant"))
    """Decay of the learning rate after warm-up."""
    betas: tuple[float, float] = option((0.9, 0.999), low=0.0, high=0.999999)
    """β₁ and β₂ of AdamW."""
    eps: float = option(1e-8, above=0.0, high=1.0)
    """ε of AdamW."""
    max_grad_norm: float = option(1.0, above=0.0, high=1e30)
    """Gradients with a larger norm are scaled down to this norm."""
    weight_decay: float = option(0.0, low=0.0, high=1.0)
    """Weight decay of AdamW. It pulls towards 0, against the anchor: use the same value for every λ."""
    global_batch_size: int = option(64, low=1)
    """Sequences per optimizer step, over all ranks."""
    local_batch_size: int = option(8, low=1, identifies=False)
    """Sequences per microbatch on a rank; the rest is gradient accumulation."""
    epochs: float | None = option(None, above=0.0, high=1e6)
    """Passes over the tokens; set this or `steps`. Both absent: 1.0."""
    steps: int | None = option(None, low=1)
    """Optimizer steps, instead of `epochs`."""
    attend_across_documents: bool = option(True)
    """Attention crosses the document boundaries within a sample; false: each document attends only to itself."""
    export_at: tuple[float, ...] = option((1.0,), above=0.0, high=1.0)
    """Fractions of the run at which a Hugging Face checkpoint is written; the last must be 1.0."""
    checkpoint_every_s: float = option(600.0, above=0.0, high=1e9, identifies=False)
    """Seconds between two checkpoints; one is also written when a job stops."""
    keep_checkpoints: int = option(2, low=1, identifies=False)
    """Number of newest checkpoints to keep."""
    keep_every: int | None = option(None, low=1, identifies=False)
    """Also keep the checkpoints at multiples of this step."""
    keep_optimizer: bool = option(True, identifies=False)
    """false: when a run is finished, its checkpoints with the optimizer state are removed."""
    activation_checkpointing: str = option("none", choices=("none", "selective", "full"), identifies=False)
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool = option(False, identifies=False)
    """torch.compile of each layer."""
    dp_replicate: int = option(1, low=1, identifies=False)
    """Replicas of the sharded model (HSDP); the other ranks form the shard axis."""
    watchdog_s: float = option(1800.0, above=0.0, high=1e9, identifies=False)
    """Seconds without a step after which a training or Fisher job prints its stacks and ends."""
    log_every: int = option(1, low=1, identifies=False)
    """Steps between two lines of metrics.jsonl."""
    seed: int = option(0, low=0)
    """Seed of the data order."""


@dataclass(frozen=True)
class EvaluateConfig:
    """[evaluate]: the checkpoints and tasks to evaluate."""

    suites: tuple[str, ...] = option(("en", "lt", "fluency"))
    """Suites, single cells such as arc_easy.lt, or names of lm-eval tasks."""
    include: tuple[str, ...] = option(())
    """Folders of further lm-eval task files (YAML)."""
    heldout: dict[str, str] = option({})
    """Files of held-out text, such as en = "a.jsonl" or "lt.news" = "b.jsonl"; that of the corpus needs none."""
    questions: str | None = option(None)
    """Folder of rows that replace the hub's data sets: <language>/<task>/<split>.jsonl (docs/evaluation.md)."""
    cloze: bool | None = option(None)
    """MMLU and Belebele of `questions` ask for the answer's words, not its letter; absent: the letter."""
    max_gen_toks: int | None = option(None, low=1)
    """Largest number of tokens of a generated answer; absent: lm-eval's own."""
    judge: str | None = option(None)
    """Model whose perplexity judges answers (`judged_answers`); hub id or folder. Absent: no such cell."""
    judge_questions: dict[str, str] = option({})
    """Files of questions to answer for the judge, by language, one {"question": …} per line; absent: TruthfulQA's."""
    judge_tokens: int = option(128, low=1)
    """Largest number of tokens of such an answer."""
    checkpoints: str = option("final")
    """Exports to evaluate: final, all, or "every 2" (the second, fourth, …, and the last)."""
    base: bool = option(True)
    """Evaluate the base model too; the report's differences are to it."""
    shots: dict[str, int] = option({"gsm8k": 5, "mmlu": 5}, low=0, high=100)
    """Worked examples in the prompt, by task; other built-in tasks get 0."""
    prompts: tuple[str, ...] = option(("core",), choices=("core", "native"))
    """Words around the question. core: as in lm-eval; native: in the language of the task."""
    backend: str = option("hf", choices=("hf", "vllm"))
    """Backend that runs the model for lm-eval."""
    backend_args: str = option("")
    """Further arguments of vllm, as in lm-eval's --model_args: gpu_memory_utilization=0.8,enforce_eager=True."""
    batch_size: int = option(16, low=1)
    """Requests per batch; recorded, since it can change generated answers (lm-eval#2498)."""
    max_length: int = option(2048, low=8)
    """Largest number of tokens of context."""
    limit: int | None = option(None, low=1)
    """Evaluate only this many documents of each task, the first; absent: all."""
    seed: int = option(1234, low=0)
    """Seed of few-shot sampling."""


@dataclass(frozen=True)
class Resources:
    """[resources.<stage>]: resources of one job of a stage. Absent keys take the stage's default."""

    nodes: int | None = option(None, low=1, identifies=False)
    """Nodes of a job."""
    nproc_per_node: int | None = option(None, low=1, identifies=False)
    """Ranks on each node; absent: gpus_per_node, else 1."""
    gpus_per_node: int | None = option(None, low=0, identifies=False)
    """GPUs on each node."""
    cpus_per_task: int | None = option(None, low=1, identifies=False)
    """CPU cores on each node (one Slurm task per node); absent: one per rank."""
    mem_gb: int | None = option(None, low=1, identifies=False)
    """Memory on each node, in GB; absent: the cluster's default."""
    time_min: int | None = option(None, low=1, identifies=False)
    """Time limit of a job on Slurm, in minutes."""
    elements: int | None = option(None, low=1, identifies=False)
    """Array elements that share the corpus (tokens), or the cells of each checkpoint (evaluate)."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: model, data, Fisher, penalty, training, evaluation, and the grid over them."""

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


def replace_at(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Return the experiment with `values` by dotted key, such as {"ewc.strength": 1e6}, and without a grid."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        section, name = key.split(".")
        part = changed.get(section, getattr(experiment, section))
        changed[section] = dataclasses.replace(part, **{name: value})
    return dataclasses.replace(experiment, **changed, grid={})
