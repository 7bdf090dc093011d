"""A Fisher in a few numbers: trace, its share by layer and by kind of parameter, quantiles, zeros."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpc_ewc.ewc.sharding.shards import local_flat, reduce_elements, shard_axes
from hpc_ewc.ewc.sharding.tiles import tiles

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
_BINS = 1 << 15
"""One for each positive bf16 number: bins 0.4–0.8 % wide over the whole range of fp32, in 32,768 counts."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")


def summarize(fisher: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns trace, number of parameters, zeros, mean, quantiles, and the trace's share by layer and by kind.

    Quantiles are read off a histogram whose bins are the bf16 numbers, so no rank gathers a tensor and the result
    does not depend on the sharding; they are exact to 0.4 %. Every rank calls it; two all-reduces.

    Args:
        fisher: {fqn: F ≥ 0}, plain or sharded.
    """
    names, tensors = list(fisher), list(fisher.values())
    device = local_flat(tensors[0]).device
    rows = torch.zeros(len(names), 1, dtype=torch.float64, device=device)
    # counts are added up over the tensors of a layout before they travel; `examples` has one tensor of each layout
    examples = {shard_axes(tensor): tensor for tensor in tensors}
    counts = {axes: torch.zeros(_BINS, dtype=torch.float64, device=device) for axes in examples}
    for row, tensor in zip(rows, tensors, strict=True):
        for (values,) in tiles(local_flat(tensor)):
            row[0] += values.sum(dtype=torch.float64)
            bins = values.float().view(torch.int32) >> 16
            counts[shard_axes(tensor)] += torch.bincount(bins.clamp_(0, _BINS - 1), minlength=_BINS)
    reduce_elements(rows, tensors)
    histogram = reduce_elements(torch.stack(list(counts.values())), examples.values()).sum(0)
    traces = dict(zip(names, rows[:, 0].tolist(), strict=True))
    trace = sum(traces.values())
    parameters = int(histogram.sum())
    return {
        "trace": trace,
        "parameters": parameters,
        "zeros": int(histogram[0]),
        "mean": trace / parameters,
        "quantiles": _quantiles(histogram, parameters),
        "share_by_layer": _shares(traces, trace, 0),
        "share_by_kind": _shares(traces, trace, 1),
    }


def _quantiles(histogram: Tensor, count: int) -> dict[str, float]:
    cumulated = histogram.cumsum(0).cpu()
    targets = torch.tensor([q * count for q in QUANTILES], dtype=torch.float64)
    bins = torch.searchsorted(cumulated, targets).clamp_(max=_BINS - 1)
    # the middle of the bin; bin 0 holds zero and what is smaller than any bf16 number
    middle = ((bins.to(torch.int32) << 16) + torch.where(bins > 0, 1 << 15, 0).to(torch.int32)).view(torch.float32)
    return {f"{q:g}": float(value) for q, value in zip(QUANTILES, middle.tolist(), strict=True)}


def _shares(traces: Mapping[str, float], trace: float, part: int) -> dict[str, float]:
    """Returns the trace's share of each layer (part 0) or kind (part 1)."""
    sums: dict[str, float] = {}
    for name, value in traces.items():
        label = _layer_and_kind(name)[part]
        sums[label] = sums.get(label, 0.0) + value
    return {label: value / trace if trace else 0.0 for label, value in sums.items()}


def _layer_and_kind(name: str) -> tuple[str, str]:
    """Splits 'model.layers.3.mlp.up_proj.weight' into ('3', 'mlp.up_proj.weight'); other names are both."""
    found = _LAYER.search(name)
    if found:
        return found.group(1), found.group(2)
    return name, name
