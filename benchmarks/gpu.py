"""Gemma 2 2B on this machine's GPUs: the fastest way to train it, by search, and what it takes against the forecast.

    python benchmarks/gpu.py [--budget-s 560] [--ranks 8] [--length 4096] [--memory-gb 80] [--out FILE]
    python benchmarks/gpu.py --device cpu --size tiny --layers 1 --length 32 --rows 1 2     # the same code, as a check

The published shape (26 layers, 256,000 tokens, soft caps, sliding windows) with random weights, made in shards on the
device; the project's own engine, λ > 0, F and θ* in bf16 beside fp32 masters. Under torchrun where there are several
GPUs. Searched: sequences at once × recomputation × compile × attention × loss, by hill climbing on tokens a second: one
setting is changed at a time, then those around the best are measured, then the rest, until the time is over. Each is a
process of its own: what has not enough memory is a row like the others. The best runs once more with 65,536 tokens a
step. Beside them, the Fisher: examples a second.

For each: tokens a second, TFLOP/s by docs/scaling.md (nothing recomputed is counted), λ > 0 over λ = 0 with both in
turns, and memory of a rank by part, each beside what hpc_ewc/launch/forecast/formulas.py says. Written to
results/gpu-<device>.json; from a CPU only where --out says. `--memory-gb` plays a smaller GPU.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from gpu_inside import TRAINING, Training, run_inside
from gpu_tables import show
from running import RESULTS, Ended, attempt, rounded, save, start

BUDGET_S = 560.0
"""After which nothing new starts; with the last one's end and the writing, under ten minutes."""
LARGE_STEP = 65_536
"""Tokens of a rank in the large step."""
QUESTIONS = {"cuda": ["8x160", "32x160", "8x512"], "cpu": ["2x16"]}
"""Of the Fisher: rows of a batch × tokens of each. MMLU's are 160 on average, and seldom above 512."""
FIRST_GUESS_S = 40.0
"""What one takes, before one has been seen."""
OUTCOMES = ("ok", "out of memory", "refused", "failed", "out of time")

Axes = dict[str, tuple[Any, ...]]
Row = dict[str, Any]


def main() -> None:
    """Search, tables, JSON."""
    arguments = start(__doc__, ranks=0, device="cuda", options=add_options)
    if arguments.inside:
        run_inside(arguments)
        return
    arguments.ranks = arguments.ranks or count_gpus(arguments.device)
    axes, absent = build_axes(arguments)
    runs = Runs(arguments)
    rows = list(measure(runs, arguments, axes))
    trained = [row for row in rows if row["what"] == TRAINING]
    ranked = sorted(trained, key=speed, reverse=True)
    result = {
        "gpus": arguments.ranks if arguments.device == "cuda" else 0,
        "ranks": arguments.ranks,
        "layers": arguments.layers,
        "tokens of a sequence": arguments.length,
        "memory_gb allowed": arguments.memory_gb,
        "budget_s": arguments.budget_s,
        "seconds": round(runs.spent_s),
        "searched": {axis: list(values) for axis, values in axes.items()},
        "not installed": absent,
        **left_out(axes, arguments, trained),
        "training, best first": ranked,
        "Fisher, best first": sorted((row for row in rows if row["what"] == "fisher"), key=speed, reverse=True),
    }
    show(result)
    name = next((row["device"] for row in rows if row.get("device")), "")
    if arguments.device == "cuda":
        arguments.out = arguments.out or RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    if arguments.out is None:
        print("nothing written: on a CPU, --out says where to")
    else:
        save(arguments, result, shown=False)
    if not any(row["outcome"] == "ok" for row in trained):
        sys.exit("gpu.py: not one training was measured")


def add_options(parser: ArgumentParser) -> None:
    """Beside --device, --size, --out and --ranks (0: all GPUs)."""
    parser.add_argument("--budget-s", type=float, default=BUDGET_S)
    parser.add_argument("--layers", type=int, help="fewer, for a check")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--memory-gb", type=float, help="as if a rank had no more")
    parser.add_argument("--large-step", type=int, default=LARGE_STEP, help="tokens of a rank; 0: none")
    parser.add_argument("--questions", nargs="*", help="rows x tokens of the Fisher's batches, such as 8x160")
    for axis, (kind, values) in AXES.items():
        parser.add_argument(f"--{axis.replace('_', '-')}", nargs="+", type=kind, help=f"default: {values}")


def yes(word: str) -> bool:
    """Of yes or no."""
    return {"yes": True, "no": False}[word]


AXES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "compile": (yes, (False, True)),
    "loss": (str, ("chunked", "liger", "full")),
    "attention": (str, ("flex_attention", "flash_attention_2", "eager")),
    "rows": (int, (1, 2, 4, 8, 16)),
    "activation_checkpointing": (str, ("none", "selective", "full")),
}
"""What is searched, in this order: its type on the command line, its values; the first of each is where it begins."""
NEEDS = {"liger": "liger_kernel", "flash_attention_2": "flash_attn"}
CPU_HAS = {"compile": (False,), "loss": ("chunked", "full"), "attention": ("eager",), "rows": (1, 2)}


def build_axes(arguments: Namespace) -> tuple[Axes, list[str]]:
    """The values of each axis that can be tried here, and those whose package is not installed."""
    axes: Axes = {}
    absent = []
    for axis, (_, usual) in AXES.items():
        values = getattr(arguments, axis)
        if values is None:
            values = CPU_HAS.get(axis, usual) if arguments.device == "cpu" else usual
            missing = [value for value in values if value in NEEDS and find_spec(NEEDS[value]) is None]
            values = [value for value in values if value not in missing]
            absent += missing
        axes[axis] = tuple(values)
    return axes, absent


def count_gpus(device: str) -> int:
    """Ranks of this machine: a GPU each; one on a CPU."""
    if device == "cpu":
        return 1
    import torch

    return torch.cuda.device_count()


# ---------------------------------------------------------------------------------------------- what is run next


def product(axes: Axes, arguments: Namespace) -> Iterator[Training]:
    """Every combination; the first is where the search begins."""
    for values in itertools.product(*axes.values()):
        yield Training(length=arguments.length, **dict(zip(axes, values, strict=True)))


def search_space(trained: Sequence[Row]) -> list[Training]:
    """Those of the product that have been run: the large step is none of them."""
    settings = [Training(**row["settings"]) for row in trained]
    return [setting for setting in settings if setting.microbatches == 1]


def next_training(axes: Axes, arguments: Namespace, trained: Sequence[Row]) -> tuple[Training | None, bool]:
    """What to measure next, None when nothing is left; and whether the search still climbs.

    Of the best's neighbours that one is next whose new value has been measured least often: all values are seen once
    before any is seen again with another companion.
    """
    settings = search_space(trained)
    seen, everything = set(settings), list(product(axes, arguments))
    best = fastest(trained) or everything[0]
    moves = [(axis, value) for axis, values in axes.items() for value in values]
    moves.sort(key=lambda move: sum(getattr(setting, move[0]) == move[1] for setting in settings))
    fitting = ("rows", "activation_checkpointing")  # what trades memory for time goes together
    around = [one for one in everything if replace(one, **{axis: getattr(best, axis) for axis in fitting}) == best]
    around.sort(key=lambda one: one.rows < best.rows)
    near = [everything[0], *(replace(best, **{axis: value}) for axis, value in moves), *around]
    for setting in (*near, *everything):
        if setting not in seen and not is_too_large(setting, trained):
            return setting, setting in near
    return None, False


KEEPS = ("full", "selective", "none")
"""Recomputation by the memory it takes, least first."""


def is_too_large(setting: Training, trained: Sequence[Row]) -> bool:
    """Another that needs no more memory has had too little: it differs in fewer sequences, or more recomputation."""
    for row in trained:
        if row["outcome"] == "out of memory":
            other = Training(**row["settings"])
            keeps = other.activation_checkpointing
            alike = replace(setting, rows=other.rows, activation_checkpointing=keeps, microbatches=other.microbatches)
            less = KEEPS.index(keeps) <= KEEPS.index(setting.activation_checkpointing)
            if alike == other and less and other.rows <= setting.rows:
                return True
    return False


def left_out(axes: Axes, arguments: Namespace, trained: Sequence[Row]) -> dict[str, int]:
    """How many combinations have not been run, and why."""
    rest = set(product(axes, arguments)) - set(search_space(trained))
    large = sum(is_too_large(setting, trained) for setting in rest)
    return {"left out for want of time": len(rest) - large, "left out, larger than what had too little memory": large}


def fastest(trained: Sequence[Row]) -> Training | None:
    """Of the search, by tokens a second."""
    good = [row for row in trained if row["outcome"] == "ok" and row["settings"]["microbatches"] == 1]
    return Training(**max(good, key=speed)["settings"]) if good else None


def speed(row: Row) -> float:
    """Tokens or examples a second; 0 of what did not run."""
    return float(row.get("tokens_per_s") or row.get("examples_per_s") or 0.0)


# ---------------------------------------------------------------------------------------------- runs


def measure(runs: Runs, arguments: Namespace, axes: Axes) -> Iterator[Row]:
    """The first training, the Fisher, the climb, the large step of the best, and the rest while there is time."""
    trained: list[Row] = []
    large = arguments.large_step == 0
    questions = arguments.questions if arguments.questions is not None else QUESTIONS[arguments.device]
    while runs.has_time:
        setting, climbing = next_training(axes, arguments, trained)
        best = fastest(trained)
        if not large and best is not None and (not climbing or runs.left_s < 3 * runs.longest_s):
            large = True
            yield (row := runs.run(TRAINING, large_step(best, arguments.large_step)))
            trained.append(row)
        elif setting is None:
            return
        else:
            yield (row := runs.run(TRAINING, setting))
            trained.append(row)
            if len(trained) == 1:
                yield from (runs.run("fisher", parse(question)) for question in questions if runs.has_time)


def large_step(best: Training, tokens: int) -> Training:
    """The same with as many microbatches as make a step of so many tokens."""
    return replace(best, microbatches=max(2, -(-tokens // (best.rows * best.length))))


@dataclass(frozen=True)
class Questions:
    """A batch of the Fisher."""

    rows: int
    length: int


def parse(question: str) -> Questions:
    """Of 8x160."""
    rows, length = question.split("x")
    return Questions(int(rows), int(length))


class Runs:
    """Processes, one after the other, and the time that they may take together."""

    def __init__(self, arguments: Namespace) -> None:
        self.arguments, self._started = arguments, time.monotonic()
        self.longest_s = FIRST_GUESS_S

    @property
    def spent_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return float(self.arguments.budget_s) - self.spent_s

    @property
    def has_time(self) -> bool:
        """One that takes as long as the longest so far would still end in time."""
        return self.left_s > self.longest_s

    def run(self, what: str, settings: Training | Questions) -> Row:
        """One row. A process of its own, so that its memory is its own, and its end nobody else's."""
        arguments, began = self.arguments, time.monotonic()
        common = {"layers": arguments.layers, "memory_gb": arguments.memory_gb, "ranks": arguments.ranks}
        words = json.dumps(asdict(settings)), json.dumps(common)
        ranks = arguments.ranks if arguments.ranks > 1 else 0
        exact = arguments.device == "cpu"
        ended = attempt(arguments, what, *words, ranks=ranks, exact_memory=exact, limit_s=max(1.0, self.left_s))
        seconds = time.monotonic() - began
        self.longest_s = max(seconds, self.longest_s if self.longest_s != FIRST_GUESS_S else 0.0)
        row = {"what": what, "settings": asdict(settings), **outcome(ended), "process_s": rounded(seconds)}
        print(f"{self.spent_s:5.0f} s  {what:8}  {describe(row)}", flush=True)
        return row


def outcome(ended: Ended) -> Row:
    """What a process said, or why it did not."""
    if ended.result.get("outcome"):
        return ended.result
    if ended.status == -14:
        return {"outcome": "out of time"}
    lines = [line for line in ended.printed.splitlines() if line.strip()]
    return {"outcome": "failed", "error": f"status {ended.status}: {' | '.join(lines[-3:])}"[:600]}


def describe(row: Mapping[str, Any]) -> str:
    """A line while it runs."""
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items() if value not in (False, 1))
    fast = f"{speed(row):,.1f} a second" if row["outcome"] == "ok" else row["outcome"]
    return f"{fast}  ({settings}){'  ' + row['error'][:160] if row.get('error') else ''}"


if __name__ == "__main__":
    main()
