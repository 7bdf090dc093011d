"""The model card of an export: its origin, and what its numbers can and cannot mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render_model_card(facts: Mapping[str, Any]) -> str:
    """Returns README.md of an exported folder: Markdown with the hub's header, from the facts of hpc_ewc.json."""
    coordinates = ", ".join(f"{key} = {value}" for key, value in facts.get("coordinates", {}).items()) or "none"
    rows = {
        "base model": facts.get("base_model"),
        "run": facts.get("run"),
        "grid point": coordinates,
        "EWC strength λ": facts.get("strength"),
        "optimizer step": facts.get("step"),
        "fraction of the run": facts.get("fraction"),
        "tokens trained on": facts.get("tokens"),
        "sha256 of weights, config, tokenizer": facts.get("model_hash"),
        "the same of the base model": facts.get("base_hash"),
        "key of the training": facts.get("train_key"),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    header = "\n".join(["---", "library_name: transformers", "tags: [continual-pretraining, ewc]", "---"])
    return f"""{header}

# {facts.get("run")}, step {facts.get("step")}

A causal language model after full-parameter continual pretraining, held to its base model by Elastic Weight
Consolidation: L(θ) = L_new(θ) + λ/2 Σ F_i (θ_i − θ*_i)², with θ* the base model and F its diagonal Fisher
information (Kirkpatrick et al. 2017). λ means nothing without the scale of that Fisher.

| | |
|---|---|
{table}

Made by hpc_ewc; `hpc_ewc.json` holds these facts for programs. The base model's license and its limits apply.
"""
