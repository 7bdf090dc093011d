"""The engine against a loop anyone would write: transformers, AdamW, one process, autograd of eq. 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from hpc_ewc import records
from hpc_ewc.data import batch_indices, read_tokens
from hpc_ewc.ewc import load_ewc_state
from hpc_ewc.stage import Stage
from tests.distributed.ranks import run_ranks
from tests.distributed.training_folder import (
    build_fisher,
    build_model,
    build_stage,
    build_tokens,
    final_weights,
    read_metrics,
    run_training,
)

STRENGTH = 300.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("oracle")
    model = build_model(base / "model")
    return {
        "model": base / "model",
        "tokens": build_tokens(base / "tokens", base / "model", count=150),
        "padded": build_tokens(base / "padded", base / "model", packing="truncate", count=150),
        "fisher": build_fisher(base / "fisher", model),
    }


def plain_loop(stage: Stage) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same training without any of this project's engine: the whole batch at once, the penalty by autograd."""
    train, ewc = stage.config.train, stage.config.ewc
    model: Any = AutoModelForCausalLM.from_pretrained(
        stage.inputs["model"], attn_implementation="eager", dtype=torch.float32
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), train.learning_rate, train.betas, train.eps, weight_decay=train.weight_decay
    )
    steps = train.steps or 0
    schedule = transformers.get_scheduler(train.schedule, optimizer, -(-steps // 20), steps)
    tokens = read_tokens(stage.inputs["tokens"])
    fisher, anchor = {}, {name: p.detach().clone() for name, p in model.named_parameters()}
    if ewc.strength:
        fisher = load_ewc_state(stage.inputs["fisher"]).fisher
    lines = []
    for step in range(steps):
        rows, lengths = tokens.batch(batch_indices(train.seed, step, train.global_batch_size, len(tokens)))
        ids = torch.from_numpy(rows)
        labels = ids.masked_fill(torch.arange(ids.shape[1]) >= torch.from_numpy(lengths)[:, None], -100)
        loss = model(input_ids=ids, labels=labels).loss  # the mean over scored tokens
        differences = {name: p - anchor[name] for name, p in model.named_parameters()}
        penalty = sum((ewc.strength / 2 * (fisher[n] * d**2).sum() for n, d in differences.items() if n in fisher), 0.0)
        optimizer.zero_grad()
        if ewc.clip == "total":
            (loss + penalty).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        else:
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
            (penalty + 0.0 * loss.detach()).backward()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            moved = {name: p - anchor[name] for name, p in model.named_parameters()}
            distance = sum(float((d.double() ** 2).sum()) for d in moved.values()) ** 0.5
            value = sum(ewc.strength / 2 * float((fisher[n].double() * d**2).sum()) for n, d in moved.items() if fisher)
        line = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
        largest = rate * ewc.strength * max((float(f.max()) for f in fisher.values()), default=0.0)
        lines.append(line | {"distance": distance, "penalty": value, "largest_step": largest})
    return lines, {name: p.detach() for name, p in model.named_parameters()}


def train(rank: int, world_size: int, *folders: Path) -> None:
    for folder in folders:
        run_training(folder)


def compare(folder: Path, tolerance: float) -> None:
    want, weights = plain_loop(Stage(folder))
    got = read_metrics(folder)
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        for name, value in other.items():
            assert mine[name] == pytest.approx(value, rel=tolerance, abs=1e-6), (mine["step"], name)
    for name, tensor in final_weights(folder).items():
        torch.testing.assert_close(tensor, weights[name], rtol=100 * tolerance, atol=20 * tolerance, msg=name)


# Each key of [train] that changes the numbers has another value than its default in one of them.
CASES: dict[str, dict[str, Any]] = {
    "free": {"steps": 50},
    "held": {"steps": 15, "ewc": {"strength": STRENGTH}},
    "held_after_clipping": {"steps": 10, "ewc": {"strength": STRENGTH, "clip": "task"}, "max_grad_norm": 0.5},
    "decayed": {
        "steps": 10,
        "weight_decay": 0.1,
        "betas": (0.8, 0.95),
        "eps": 1e-6,
        "schedule": "linear",
        "seed": 5,
    },
    "padded": {"steps": 10, "local_batch_size": 1},
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("world_size", "replicate", "names"), [(2, 1, tuple(CASES)), (4, 2, ("held", "padded"))], ids=["1D", "HSDP"]
)
def test_losses_equal_a_plain_loop(
    inputs: dict[str, Path], tmp_path: Path, world_size: int, replicate: int, names: tuple[str, ...]
) -> None:
    """50 steps at λ = 0, and autograd of eq. 3 at λ > 0; six sequences over four ranks leave two of them short."""
    for name in names:
        case = CASES[name]
        tokens = inputs["padded" if name == "padded" else "tokens"]
        options = {"learning_rate": 1e-3, "dp_replicate": replicate} | case
        build_stage(tmp_path / name, inputs["model"], tokens, fisher=inputs["fisher"], **options)
    run_ranks(world_size, train, *(tmp_path / name for name in names), timeout_s=300)
    for name in names:
        compare(tmp_path / name, tolerance=2e-5)


def test_documents_of_a_sample_can_be_kept_from_seeing_each_other(inputs: dict[str, Path], tmp_path: Path) -> None:
    """The loss of a step against each document run alone; the token after a document's last is the next one's BOS."""
    stage = build_stage(tmp_path / "apart", inputs["model"], inputs["tokens"], steps=1, attend_across_documents=False)
    build_stage(tmp_path / "joined", inputs["model"], inputs["tokens"], steps=1)
    run_ranks(2, train, tmp_path / "apart", tmp_path / "joined")
    model = AutoModelForCausalLM.from_pretrained(inputs["model"], attn_implementation="eager")
    tokens = read_tokens(inputs["tokens"])
    losses = []
    for i in batch_indices(0, 0, stage.config.train.global_batch_size, len(tokens)):
        ids = torch.from_numpy(tokens[int(i)])
        begins = sorted({0, *(ids == tokens.bos_id).nonzero().flatten().tolist()})
        documents = [ids[a:b] for a, b in zip(begins, [*begins[1:], len(ids)], strict=True)]
        with torch.no_grad():
            logits = torch.cat([model(input_ids=document[None]).logits[0] for document in documents])
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none"))
    want = float(torch.cat(losses).mean())
    apart, joined = (read_metrics(tmp_path / name)[0]["loss"] for name in ("apart", "joined"))
    assert apart == pytest.approx(want, rel=1e-6)
    assert abs(joined - want) > 1e-4


def train_noting_layers(rank: int, world_size: int, *folders: Path) -> list[tuple[str, bool]]:
    """How the layers of each training were prepared, which its numbers do not show."""
    from hpc_ewc.train import run as room

    noted, prepare = [], room.prepare_layers

    def prepare_layers(model: Any, checkpointing: str, *, compile_layers: bool) -> None:
        noted.append((checkpointing, compile_layers))
        prepare(model, checkpointing, compile_layers=compile_layers)

    room.prepare_layers = prepare_layers
    train(rank, world_size, *folders)
    return noted


@pytest.mark.slow
def test_memory_options_and_λ_0_with_a_fisher_change_not_one_bit(inputs: dict[str, Path], tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "selective": {"activation_checkpointing": "selective"},
        "full": {"activation_checkpointing": "full"},
        "fisher_at_0": {"fisher": inputs["fisher"], "ewc": {"strength": 0.0, "clip": "task", "mode": "proximal"}},
    }
    for name, options in variants.items():
        build_stage(tmp_path / name, inputs["model"], inputs["tokens"], **options)
    noted = run_ranks(2, train_noting_layers, *(tmp_path / name for name in variants))
    assert noted == [("none", False), ("selective", False), ("full", False), ("none", False)]
    plain = final_weights(tmp_path / "plain")
    for name in variants:
        for tensor, value in final_weights(tmp_path / name).items():
            assert torch.equal(value, plain[tensor]), (name, tensor)


def train_compiled(rank: int, world_size: int, *folders: Path) -> int:
    import warnings

    import torch._dynamo.utils

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo looks at tensors in ways that warn; inductor's imports do too
        warnings.filterwarnings("error", message="torch.compile does not work here")
        train(rank, world_size, *folders)
    return len(torch._dynamo.utils.compilation_time_metrics)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("world_size", "replicate"), [(2, 1), (4, 2)], ids=["1D", "HSDP"])
def test_compiled_layers_train_alike_on_shards(
    inputs: dict[str, Path], tmp_path: Path, world_size: int, replicate: int
) -> None:
    """With the penalty and accumulation; where each layer's cheap parts are computed again; updated in one pass."""
    options: dict[str, Any] = {"fisher": inputs["fisher"], "ewc": {"strength": STRENGTH}, "dp_replicate": replicate}
    variants: dict[str, dict[str, Any]] = {
        "compiled": {"compile": True},
        "compiled_selective": {"compile": True, "activation_checkpointing": "selective"},
        "one_pass": {"ewc": {"strength": STRENGTH, "update": "one_pass"}},
        "one_pass_task": {"ewc": {"strength": STRENGTH, "update": "one_pass", "clip": "task"}, "max_grad_norm": 0.5},
    }
    for name, variant in variants.items():
        build_stage(tmp_path / name, inputs["model"], inputs["tokens"], **options | variant)
    compiled = run_ranks(world_size, train_compiled, *(tmp_path / name for name in variants), timeout_s=800)
    assert compiled > 0
    for name in variants:
        compare(tmp_path / name, tolerance=2e-5)


@pytest.mark.slow
def test_the_chunked_and_the_full_loss_train_alike_and_proximal_holds_at_any_λ(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    build_stage(tmp_path / "chunked", inputs["model"], inputs["tokens"])
    build_stage(tmp_path / "full", inputs["model"], inputs["tokens"], model_options={"loss": "full"})
    ewc = {"strength": 1e12, "mode": "proximal"}
    build_stage(tmp_path / "proximal", inputs["model"], inputs["tokens"], fisher=inputs["fisher"], ewc=ewc)
    run_ranks(2, train, tmp_path / "chunked", tmp_path / "full", tmp_path / "proximal")
    for kind in ("chunked", "full"):
        assert records.read_json(tmp_path / kind / "manifest.json")["loss"] == kind
    for a, b in zip(read_metrics(tmp_path / "chunked"), read_metrics(tmp_path / "full"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    held = Stage(tmp_path / "proximal")
    fisher, anchor = load_ewc_state(held.inputs["fisher"]).fisher, load_ewc_state(held.inputs["fisher"]).anchor
    for name, tensor in final_weights(tmp_path / "proximal").items():
        important = fisher[name] > 1e-5
        assert torch.allclose(tensor[important], anchor[name][important], atol=1e-6)
        assert not torch.equal(tensor[fisher[name] == 0], anchor[name][fisher[name] == 0])
