"""Measure head, soft cap and cross-entropy, forward and backward, with all logits at once or some at a time.

    python benchmarks/loss_memory.py [--device cpu|cuda] [--size small|gemma2-2b] [--out FILE]

`full` is the oracle, as transformers computes it; `chunked` is the default of [model] loss; `liger` needs a GPU. Memory
is the peak beyond states, weights and labels, in a process of its own; it includes the two gradients, which every kind
needs (`gradients_mb`). For the times, the kinds take turns in one process.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from environment import PeakMemory
from models import DTYPE
from running import alone, medians, ratio, rounded, save, say, start, take_turns

SHAPES = {"small": (2048, 512, 32000), "gemma2-2b": (8192, 2304, 256000)}
"""Tokens, hidden width and vocabulary by model size."""
SOFTCAP = 30.0
ROUNDS = 7


def main() -> None:
    """Measure memory and time and write one JSON file."""
    arguments = start(__doc__)
    kinds = ["full", "chunked", *(["liger"] if arguments.device == "cuda" and _has_liger() else [])]
    if arguments.inside:
        what, *kind = arguments.inside
        say(times(arguments, kinds) if what == "times" else {"peak": peak(arguments, *kind)})
        return
    peaks = {kind: alone(arguments, "memory", kind, exact_memory=True)["peak"] for kind in kinds}
    tokens, width, vocabulary = SHAPES[arguments.size]
    gradients = (tokens + vocabulary) * width * (4 if DTYPE[arguments.size] == "float32" else 2)
    result: dict[str, Any] = {
        "tokens": tokens,
        "width": width,
        "vocabulary": vocabulary,
        "dtype": DTYPE[arguments.size],
        "peak_mb": {kind: rounded(bytes / 1e6) for kind, bytes in peaks.items()},
        "gradients_mb": rounded(gradients / 1e6),
        "full / chunked, memory": rounded(peaks["full"] / peaks["chunked"]),
        **alone(arguments, "times"),
    }
    save(arguments, result)


def _has_liger() -> bool:
    from importlib.util import find_spec

    return find_spec("liger_kernel") is not None


def build(arguments: Namespace, kind: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a function that runs one forward and backward on ready tensors, and one that drops its gradients."""
    import torch

    from hpc_ewc.model.loss import build_loss

    tokens, width, vocabulary = SHAPES[arguments.size]
    dtype, device = getattr(torch, DTYPE[arguments.size]), arguments.device
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, dtype=dtype, device=device, requires_grad=True)
    weight = (0.06 * torch.randn(vocabulary, width, dtype=dtype, device=device)).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), device=device)
    function = build_loss(kind, SOFTCAP)  # type: ignore[arg-type]

    def drop() -> None:
        hidden.grad = weight.grad = None

    def once() -> None:
        drop()
        function(hidden, weight, labels).backward()

    return once, drop


def peak(arguments: Namespace, kind: str) -> int:
    """Return the peak bytes of the second pass."""
    once, drop = build(arguments, kind)
    once()
    drop()
    measured = PeakMemory(arguments.device)
    once()
    return measured.bytes()


def times(arguments: Namespace, kinds: list[str]) -> dict[str, Any]:
    """Return the seconds of each kind, and their ratio to `full`."""
    found = take_turns({kind: build(arguments, kind)[0] for kind in kinds}, ROUNDS, arguments.device)
    return {"seconds": medians(found), "/ full, time": {kind: ratio(found, kind, "full") for kind in kinds[1:]}}


if __name__ == "__main__":
    main()
