"""Search for the fastest way to train Gemma 2 2B on this machine's GPUs, and compare its memory with the forecast.

    python benchmarks/gpu.py [--budget-s 560] [--ranks 8] [--length 4096] [--memory-gb 80] [--out FILE]
    python benchmarks/gpu.py --device cpu --size tiny --layers 1 --length 32 --rows 1 2     # the same code, as a check

The model has the published shape (26 layers, 256,000 tokens, soft caps, sliding windows) and random weights, made in
shards on the device. It is trained by the project's engine at λ > 0, with F and θ* in bf16 beside fp32 masters, under
torchrun if there are several GPUs. The search covers sequences at once × recomputation × compile × attention × loss, by
hill climbing on tokens per second: it changes one setting at a time, then measures the neighbours of the best, then the
rest until the time is over. Each setting runs in a process of its own, so one that needs too much memory is a row like
the others. The best runs once more with 65,536 tokens per step. The Fisher is measured too: examples per second.

Each row has tokens per second, TFLOP/s by docs/scaling.md (recomputation is not counted), λ > 0 over λ = 0 with both
taking turns, and memory of a rank by part, each beside the forecast of hpc_ewc/launch/forecast/formulas.py. Results go
to results/gpu-<device>.json; on a CPU they are written only with --out. `--memory-gb` imitates a smaller GPU.
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
"""Time after which no process starts; with the last one's end and the writing, the whole takes under ten minutes."""
LARGE_STEP = 65_536
"""Tokens per rank in the large step."""
QUESTIONS = {"cuda": ["8x160", "32x160", "8x512"], "cpu": ["2x16"]}
"""Batches of the Fisher: rows × tokens of each. MMLU's questions have 160 tokens on average, seldom more than 512."""
FIRST_GUESS_S = 40.0
"""Assumed duration of a process before the first has been measured."""
OUTCOMES = ("ok", "out of memory", "refused", "failed", "out of time")

Axes = dict[str, tuple[Any, ...]]
Row = dict[str, Any]


def main() -> None:
    """Search, print the tables and write the JSON."""
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
        print("results not written: on a CPU, name a file with --out")
    else:
        save(arguments, result, shown=False)
    if not any(row["outcome"] == "ok" for row in trained):
        sys.exit("gpu.py: no training was measured")


def add_options(parser: ArgumentParser) -> None:
    """Add the options of this script to --device, --size, --out and --ranks (0: all GPUs)."""
    parser.add_argument("--budget-s", type=float, default=BUDGET_S)
    parser.add_argument("--layers", type=int, help="fewer layers, to check the script")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--memory-gb", type=float, help="limit the memory of a rank")
    parser.add_argument("--large-step", type=int, default=LARGE_STEP, help="tokens of a rank; 0: no large step")
    parser.add_argument("--questions", nargs="*", help="batches of the Fisher, rows x tokens, such as 8x160")
    for axis, (kind, values) in AXES.items():
        parser.add_argument(f"--{axis.replace('_', '-')}", nargs="+", type=kind, help=f"default: {values}")


def yes(word: str) -> bool:
    """Parse yes or no."""
    return {"yes": True, "no": False}[word]


AXES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "compile": (yes, (False, True)),
    "loss": (str, ("chunked", "liger", "full")),
    "attention": (str, ("flex_attention", "flash_attention_2", "eager")),
    "rows": (int, (1, 2, 4, 8, 16)),
    "activation_checkpointing": (str, ("none", "selective", "full")),
}
"""The axes of the search, in order: type on the command line, and values, of which the search starts at the first."""
NEEDS = {"liger": "liger_kernel", "flash_attention_2": "flash_attn"}
CPU_HAS = {"compile": (False,), "loss": ("chunked", "full"), "attention": ("eager",), "rows": (1, 2)}


def build_axes(arguments: Namespace) -> tuple[Axes, list[str]]:
    """Return the values of each axis that can run here, and those whose package is not installed."""
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
    """Return the ranks of this machine: one per GPU, or one on a CPU."""
    if device == "cpu":
        return 1
    import torch

    return torch.cuda.device_count()


# ---------------------------------------------------------------------------------------------- what runs next


def product(axes: Axes, arguments: Namespace) -> Iterator[Training]:
    """Yield every combination; the search starts at the first."""
    for values in itertools.product(*axes.values()):
        yield Training(length=arguments.length, **dict(zip(axes, values, strict=True)))


def search_space(trained: Sequence[Row]) -> list[Training]:
    """Return the combinations that have run, without the large step."""
    settings = [Training(**row["settings"]) for row in trained]
    return [setting for setting in settings if setting.microbatches == 1]


def next_training(axes: Axes, arguments: Namespace, trained: Sequence[Row]) -> tuple[Training | None, bool]:
    """Return the setting to measure next (None when none is left), and whether the search still climbs.

    Among the neighbours of the best, the one whose new value has been measured least often is next, so that every value
    is measured once before any is measured again.
    """
    settings = search_space(trained)
    seen, everything = set(settings), list(product(axes, arguments))
    best = fastest(trained) or everything[0]
    moves = [(axis, value) for axis, values in axes.items() for value in values]
    moves.sort(key=lambda move: sum(getattr(setting, move[0]) == move[1] for setting in settings))
    fitting = ("rows", "activation_checkpointing")  # settings that trade memory for time change together
    around = [one for one in everything if replace(one, **{axis: getattr(best, axis) for axis in fitting}) == best]
    around.sort(key=lambda one: one.rows < best.rows)
    near = [everything[0], *(replace(best, **{axis: value}) for axis, value in moves), *around]
    for setting in (*near, *everything):
        if setting not in seen and not is_too_large(setting, trained):
            return setting, setting in near
    return None, False


KEEPS = ("full", "selective", "none")
"""Kinds of recomputation by the memory they take, least first."""


def is_too_large(setting: Training, trained: Sequence[Row]) -> bool:
    """Whether a setting that needs no more memory ran out: one that has fewer sequences or more recomputation."""
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
    """Return how many combinations have not run, by reason."""
    rest = set(product(axes, arguments)) - set(search_space(trained))
    large = sum(is_too_large(setting, trained) for setting in rest)
    return {"left out for want of time": len(rest) - large, "left out, larger than what had too little memory": large}


def fastest(trained: Sequence[Row]) -> Training | None:
    """Return the setting of the search with the most tokens per second."""
    good = [row for row in trained if row["outcome"] == "ok" and row["settings"]["microbatches"] == 1]
    return Training(**max(good, key=speed)["settings"]) if good else None


def speed(row: Row) -> float:
    """Return tokens or examples per second; 0 if the row did not run."""
    return float(row.get("tokens_per_s") or row.get("examples_per_s") or 0.0)


# ---------------------------------------------------------------------------------------------- runs


def measure(runs: Runs, arguments: Namespace, axes: Axes) -> Iterator[Row]:
    """Run the first training, the Fisher, the climb, the large step of the best, and the rest while there is time."""
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
    """Return the setting with enough microbatches for a step of `tokens` tokens."""
    return replace(best, microbatches=max(2, -(-tokens // (best.rows * best.length))))


@dataclass(frozen=True)
class Questions:
    """A batch of the Fisher."""

    rows: int
    length: int


def parse(question: str) -> Questions:
    """Parse a batch such as 8x160."""
    rows, length = question.split("x")
    return Questions(int(rows), int(length))


class Runs:
    """Runs processes one after the other within the time budget."""

    def __init__(self, arguments: Namespace) -> None:
        self.arguments, self._started = arguments, time.monotonic()
        self.longest_s = FIRST_GUESS_S

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        """Seconds left of the budget."""
        return float(self.arguments.budget_s) - self.spent_s

    @property
    def has_time(self) -> bool:
        """Whether a process as long as the longest so far would still end in time."""
        return self.left_s > self.longest_s

    def run(self, what: str, settings: Training | Questions) -> Row:
        """Return one row, from a process of its own, so that neither its memory nor its failure affects the others."""
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
    """Return what a process reported, or why it reported nothing."""
    if ended.result.get("outcome"):
        return ended.result
    if ended.status == -14:
        return {"outcome": "out of time"}
    lines = [line for line in ended.printed.splitlines() if line.strip()]
    return {"outcome": "failed", "error": f"status {ended.status}: {' | '.join(lines[-3:])}"[:600]}


def describe(row: Mapping[str, Any]) -> str:
    """Return the line that is printed when a process ends."""
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items() if value not in (False, 1))
    fast = f"{speed(row):,.1f} a second" if row["outcome"] == "ok" else row["outcome"]
    return f"{fast}  ({settings}){'  ' + row['error'][:160] if row.get('error') else ''}"


if __name__ == "__main__":
    main()
