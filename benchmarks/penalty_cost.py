"""Measure the EWC penalty's time per element and peak memory, against autograd and this machine's memory bandwidth.

    python benchmarks/penalty_cost.py [--device cpu|cuda] [--size small|gemma2-2b] [--out FILE]

On a CPU: one thread; 1e6 and 1e7 elements in 26 equal tensors, and the tensors of Gemma 3 270M. On a GPU (141 GB):
those of Gemma 2 2B, on one shard and on the shard of one rank of eight. Numbers are random. All methods for a size take
turns in one process, over the same θ, θ*, F and gradient; peak memory beyond these is measured for each method, at the
largest size, in a process of its own.

Methods: `autograd` writes the penalty as a loss and calls backward; `foreach` is the analytic gradient over whole
tensors; `eager` and `compiled` are EwcPenalty's two kernels, `+bf16` with θ* and F in bfloat16; `proximal` is its other
mode; `value` is the cost of a log line; `triad` (c = a + b, 12 bytes per element) measures the bandwidth; `adamw` is
the optimizer's own fused step. `update` is penalty, clipping and AdamW in sequence, as in a step; `one pass` is
FusedAdamW with clip = "total", and with "task".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from environment import PeakMemory
from models import parameter_sizes
from running import alone, ratio, rounded, save, say, start, take_turns

STRENGTH = 10.0
WAYS = (
    "triad",
    "autograd",
    "foreach",
    "eager",
    "eager+bf16",
    "compiled",
    "compiled+bf16",
    "value",
    "proximal",
    "adamw",
    "update",
    "one pass",
    "one pass, task",
)
UPDATES = {"update": 60, "one pass": 52, "one pass, task": 40}
BYTES = {"triad": 12, "eager": 20, "eager+bf16": 16, "compiled": 20, "compiled+bf16": 16} | UPDATES
"""Bytes per element that a method must move: it reads θ, θ*, F and the gradient and writes the gradient; an update adds
the norm, clipping and AdamW's moments."""
CASES = {"small": [("1e6", 1), ("1e7", 1), ("gemma-3-270m", 1)], "gemma2-2b": [("gemma2-2b", 1), ("gemma2-2b", 8)]}
"""Number of elements (or the model with these tensors), and shards."""
Way = Callable[[], Any]


def main() -> None:
    """Measure every method on every size and write one JSON file."""
    arguments = start(__doc__)
    if arguments.inside:
        what, size, shards, *way = arguments.inside
        sizes = [-(-n // int(shards)) for n in elements_of(size)]
        say(compare(sizes, arguments.device) if what == "times" else memory(sizes, arguments.device, *way))
        return
    result: dict[str, Any] = {"strength": STRENGTH}
    for size, shards in CASES[arguments.size]:
        case = alone(arguments, "times", size, shards)
        if (size, shards) == CASES[arguments.size][-1]:
            for way in WAYS:
                found = alone(arguments, "memory", size, shards, way, exact_memory=True)
                case["ways"][way] |= found
        result[f"{size} elements, {shards} shards"] = case
    save(arguments, result)


def elements_of(size: str) -> list[int]:
    """Return the number of elements of each tensor."""
    if size == "gemma-3-270m":
        layer = [1024 * 640, 256 * 640, 256 * 640, 640 * 1024, *[2048 * 640] * 3, *[640] * 4, *[256] * 2]
        return [262144 * 640, *layer * 18, 640]
    return parameter_sizes(size) if size == "gemma2-2b" else [int(float(size)) // 26] * 26


def compare(sizes: list[int], device: str) -> dict[str, Any]:
    """Return every method's median nanoseconds per element, and the ratios that follow."""
    elements = sum(sizes)
    actions = Ways(sizes, device)
    ways = {way: actions.build(way) for way in WAYS}
    rounds = max(5, min(41, int(3e8 / elements)))
    times = take_turns(ways, rounds, device)
    seconds = {way: statistics.median(times[way]) for way in WAYS}
    bandwidth = BYTES["triad"] * elements / seconds["triad"]
    return {
        "rounds": rounds,
        "ways": {
            way: {"ns_per_element": rounded(s * 1e9 / elements), "ms": rounded(s * 1e3)} for way, s in seconds.items()
        },
        "GB/s of triad": rounded(bandwidth / 1e9),
        "autograd /": {way: ratio(times, "autograd", way) for way in ("foreach", "eager", "compiled", "compiled+bf16")},
        "update /": {way: ratio(times, "update", way) for way in UPDATES if way != "update"},
        "bandwidth's time /": {
            way: rounded(moved * elements / bandwidth / seconds[way]) for way, moved in BYTES.items() if way != "triad"
        },
    }


def memory(sizes: list[int], device: str, way: str) -> dict[str, float]:
    """Return the peak bytes beyond a method's inputs: θ, θ*, F, the gradient, and the optimizer's state if it steps."""
    action = Ways(sizes, device).build(way)
    action()
    peak = PeakMemory(device)
    action()
    extra = peak.bytes()
    return {"peak_mb": rounded(extra / 1e6), "peak_bytes_per_element": round(extra / sum(sizes), 3)}


class Ways:
    """The methods on one set of tensors, each as a function without arguments."""

    def __init__(self, sizes: list[int], device: str) -> None:
        import torch
        from torch import nn

        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.model = nn.ParameterDict(
            {f"p{i}": nn.Parameter(torch.randn(n, device=device)) for i, n in enumerate(sizes)}
        )
        self.parameters = list(self.model.values())
        for parameter in self.parameters:
            parameter.grad = torch.randn_like(parameter)
        self._optimizer: Any = None

    def build(self, way: str) -> Way:
        """Return the function of a method; everything it reads is in memory."""
        if way in ("triad", "adamw"):
            return getattr(self, way)()  # type: ignore[no-any-return]
        import torch

        from hpc_ewc.ewc import EwcPenalty

        dtype = torch.bfloat16 if way.endswith("bf16") else torch.float32
        anchor, fisher = self._held(dtype)
        if way in ("autograd", "foreach"):
            return getattr(self, way)(anchor, fisher)  # type: ignore[no-any-return]
        if way == "proximal":
            optimizer = self._stepped()
            penalty = EwcPenalty(self.model, anchor, fisher, STRENGTH, "proximal")
            return lambda: penalty.proximal_step_(optimizer)
        if way in UPDATES:
            return self.update(EwcPenalty(self.model, anchor, fisher, STRENGTH), way)
        penalty = EwcPenalty(self.model, anchor, fisher, STRENGTH, compile=way.startswith("compiled"))
        return penalty.value if way == "value" else penalty.add_gradient_

    def _held(self, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return θ* and F in a dtype; the same tensors for every method."""
        import torch

        name = f"_held_{dtype}"
        if name not in vars(self):
            anchor = {n: p.detach().to(dtype) * 0.9 for n, p in self.model.items()}
            fisher = {n: torch.rand_like(p.detach()).to(dtype) for n, p in self.model.items()}
            setattr(self, name, (anchor, fisher))
        return getattr(self, name)  # type: ignore[no-any-return]

    def _stepped(self) -> Any:
        """Return AdamW after a step, with a learning rate so small that θ does not change."""
        import torch

        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(self.parameters, lr=1e-12, fused=True)
            self._optimizer.step()
        return self._optimizer

    def triad(self) -> Way:
        """Return a function that adds θ and the gradient into another tensor."""
        import torch

        out = [torch.empty_like(p) for p in self.parameters]
        pairs = [(p.detach(), p.grad, c) for p, c in zip(self.parameters, out, strict=True)]
        return lambda: [torch.add(a, b, out=c) for a, b, c in pairs]

    def adamw(self) -> Way:
        """Return the optimizer's own step."""
        return self._stepped().step  # type: ignore[no-any-return]

    def update(self, penalty: Any, way: str) -> Way:
        """Return the update as train/trainer.py does it; the host waits for the norm in each method."""
        from hpc_ewc.ewc import FusedAdamW
        from hpc_ewc.train.trainer import clip_, global_norm

        optimizer = self._stepped()
        if way == "update":

            def apart() -> None:
                penalty.add_gradient_()
                float(clip_(self.parameters, 1.0))
                optimizer.step()

            return apart
        fused = FusedAdamW(penalty, optimizer)
        assert fused.works, "the compiler does not work here"

        def at_once() -> None:
            norm = float(fused.norm() if way == "one pass" else global_norm(self.parameters))
            factor = min(1.0, 1.0 / (norm + 1e-6))
            fused.step_(factor, factor if way == "one pass" else 1.0)

        return at_once

    def autograd(self, anchor: dict[str, Any], fisher: dict[str, Any]) -> Way:
        """Return the penalty as an ordinary term of the loss, with its backward."""
        import torch

        def run() -> None:
            terms = [(fisher[n] * (p - anchor[n]) ** 2).sum() for n, p in self.model.items()]
            (STRENGTH / 2 * torch.stack(terms).sum()).backward()

        return run

    def foreach(self, anchor: dict[str, Any], fisher: dict[str, Any]) -> Way:
        """Return the analytic gradient, one whole tensor at a time."""
        import torch

        def run() -> None:
            with torch.no_grad():
                deltas = torch._foreach_sub(self.parameters, list(anchor.values()))
                grads = [p.grad for p in self.parameters]
                torch._foreach_addcmul_(grads, list(fisher.values()), deltas, value=STRENGTH)

        return run


if __name__ == "__main__":
    main()
