"""The forecast's formulas agree with transformers' counts, autograd's saved tensors and the training metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from hpc_ewc.config import DataConfig, EvaluateConfig, FisherConfig, ModelConfig, TrainConfig
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.forecast import formulas
from hpc_ewc.launch.forecast.formulas import Place
from hpc_ewc.launch.forecast.shapes import KNOWN, Shape, find_shape, known_shape, read_shape, shape_of
from hpc_ewc.launch.profile.gpus import GPUS, SHARES, rates
from hpc_ewc.model import loss
from hpc_ewc.train import metrics
from tests.conftest import REPOSITORY

TINY = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"query_pre_attn_scalar": 16}),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM, {"query_pre_attn_scalar": 16}),
}
DATA = DataConfig(source="files", sequence_length=512)


def config_of(kind: str, **changes: Any) -> Any:
    config, _, own = MODELS[kind]
    return config(**TINY | own | changes)


def shape_like(config: Any) -> Shape:
    return shape_of(config.to_dict(), "x")


# ---------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("kind", MODELS)
def test_parameter_count_equals_transformers(kind: str) -> None:
    config = config_of(kind)
    with torch.device("meta"):
        model = MODELS[kind][1](config)
    shape = shape_like(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2]
    assert shape.matmul_parameters == sum(p.numel() for p in matrices), "the tied head is one of them"


def test_gemma_2_2b_shape_is_the_default_of_transformers() -> None:
    assert known_shape("google/gemma-2-2b-it") == shape_like(Gemma2Config(tie_word_embeddings=True))


@pytest.mark.parametrize(
    ("name", "billions"),
    [("2-2b", 2.61), ("2-9b", 9.24), ("2-27b", 27.2), ("3-270m", 0.268), ("3-1b", 1.0)],
)
def test_known_shapes_have_the_parameter_counts_of_their_model_cards(name: str, billions: float) -> None:
    assert KNOWN[f"google/gemma-{name}"].parameters / 1e9 == pytest.approx(billions, rel=0.003)
    assert known_shape(f"google/gemma-{name}-it") is KNOWN[f"google/gemma-{name}"]


def test_configurations_without_layer_types_are_read() -> None:
    for kind, (sliding, full) in {"gemma2": (2, 1), "gemma3_text": (3, 0)}.items():
        table = config_of(kind).to_dict()
        kinds = table.pop("layer_types")
        assert (kinds.count("sliding_attention"), kinds.count("full_attention")) == (sliding, full)
        assert shape_of(table, "x").sliding_layers == sliding


def test_shapes_are_read_from_files_or_folders_and_errors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of("gemma2").to_dict()))
    assert read_shape(path) == read_shape(tmp_path)
    assert find_shape("x/y", tmp_path) == (read_shape(path), "by its config.json")
    assert find_shape("google/gemma-2-2b", tmp_path / "none", given=path)[0] == read_shape(path)
    assert find_shape("google/gemma-2-2b", tmp_path / "none")[1] == "by its published shape"
    unknown, why = find_shape("google/gema-2-27b", tmp_path / "none")
    assert unknown is None
    assert why == "give its config.json with --config; did you mean 'google/gemma-2-27b'?"
    path.write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=re.escape("model_type is 'llama'; allowed are gemma2, gemma3_text")):
        read_shape(tmp_path)
    assert find_shape("x/y", tmp_path)[0] is None
    path.write_text('{"model_type": "gemma2"}')
    with pytest.raises(
        ConfigError, match="no number in vocab_size, hidden_size, .*; is it the configuration of a complete"
    ):
        read_shape(tmp_path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: .*; give a model's config\.json"):
        read_shape(tmp_path)
    with pytest.raises(ConfigError, match=r"none/x: no such file; give a model's config\.json or its folder"):
        read_shape(tmp_path / "none" / "x")


# ---------------------------------------------------------------------------------------------- activations


def kept_by_autograd(model: Any, rows: int, length: int) -> int:
    """Return the bytes of all tensors saved for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, model.config.vocab_size, (rows, length))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False).last_hidden_state.float().sum()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("rows", "length", "dtype"), [(2, 64, "float32"), (3, 96, "bfloat16"), (1, 512, "float32")])
def test_activation_bytes_equal_those_saved_by_autograd(kind: str, rows: int, length: int, dtype: str) -> None:
    config = config_of(kind)
    config._attn_implementation = "eager"
    model = MODELS[kind][1](config).to(getattr(torch, dtype)).train()
    kept = kept_by_autograd(model, rows, length)
    predicted = formulas.kept_activations(shape_like(config), rows, length, formulas.BYTES[dtype], "eager", "none")
    assert predicted == pytest.approx(kept, rel=0.1)


def test_recomputed_activations_are_not_stored() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    kept = {
        how: formulas.kept_activations(shape, 8, 512, 2, "flex_attention", how) for how in ("none", "selective", "full")
    }
    assert kept["none"] > 1.5 * kept["selective"] > 3 * kept["full"]
    per_token = formulas.kept_activations(shape, 1, 1, 2, "flex_attention", "none")
    assert kept["none"] == pytest.approx(8 * 512 * per_token), "without scores, linear in tokens"
    eager = [formulas.layer_activations(shape, 1, n, 2, "eager") for n in (1024, 2048)]
    assert eager[1] > 2.2 * eager[0], "scores are quadratic"


# ---------------------------------------------------------------------------------------------- memory, disk, network


def memory(ranks: int, **changes: Any) -> formulas.Parts:
    train = TrainConfig(**{"local_batch_size": 8} | changes)
    place = Place("cuda", ranks // train.dp_replicate)
    return formulas.training_memory(KNOWN["google/gemma-2-2b"], ModelConfig(path="x"), DATA, train, place, 6.0)


def test_only_shards_shrink_with_the_number_of_ranks() -> None:
    parameters = KNOWN["google/gemma-2-2b"].parameters
    one, eight = memory(1), memory(8)
    for name in ("weights", "moments", "gradients", "F and θ*"):
        assert one[name] == pytest.approx(8 * eight[name])
    assert sum(one[name] for name in ("weights", "moments", "gradients", "F and θ*")) == 22 * parameters
    for name in ("gathered", "activations", "loss"):
        assert one[name] == eight[name]
    assert memory(8, dp_replicate=2)["weights"] == 2 * eight["weights"]


def test_the_papers_training_fits_on_eight_80_gb_gpus_or_40_gb_with_recomputation() -> None:
    assert 30e9 < sum(memory(8).values()) < 40e9
    assert sum(memory(8, activation_checkpointing="full").values()) < 22e9


def test_the_documented_table_of_models_and_gpus_equals_the_formula() -> None:
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    table = page[page.index("| GB of a rank") :].split("\n\n")[0].splitlines()
    ranks = [int(cell.split()[0]) for cell in table[0].split("|")[2:-1]]
    train = [TrainConfig(local_batch_size=8, activation_checkpointing=kept) for kept in ("none", "full")]
    for line in table[2:]:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        for count, cell in zip(ranks, cells, strict=True):
            shape, place = KNOWN[f"google/{name}"], Place("cuda", count)
            sums = [
                sum(formulas.training_memory(shape, ModelConfig(path="x"), DATA, t, place, 6.0).values()) for t in train
            ]
            assert cell == " / ".join(f"{size / 1e9:.0f}" for size in sums), (name, count)
    assert len(table) == 2 + len(KNOWN)


def test_embedding_reduction_is_the_memory_peak_if_activations_are_few() -> None:
    shape = KNOWN["google/gemma-3-270m"]
    train, place = TrainConfig(local_batch_size=1), Place("cpu", 2)
    parts = formulas.training_memory(
        shape, ModelConfig(path="x"), DataConfig(source="files", sequence_length=8), train, place, 6.0
    )
    assert parts["activations"] == 0.0
    assert parts["loss"] == 4 * shape.embedding + 4 * shape.root


def test_cpu_checkpoints_need_memory_for_a_copy() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    parts = {
        device: formulas.training_memory(shape, ModelConfig(path="x"), DATA, TrainConfig(), Place(device, 4), 6.0)
        for device in ("cpu", "cuda")
    }
    assert parts["cpu"]["checkpoint"] == parts["cpu"]["weights"] + parts["cpu"]["moments"]
    assert "checkpoint" not in parts["cuda"]


def test_loss_memory_is_three_chunks_and_the_embedding_gradient() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    chunked = formulas.loss_bytes(shape, 4096, 2, "chunked", "cuda")
    assert chunked == 3 * 2**30 + 6 * shape.embedding
    assert formulas.loss_bytes(shape, 4096, 2, "full", "cuda") > 2.5 * chunked
    assert formulas.CHUNK_BYTES == loss.CHUNK_BYTES


def test_fisher_and_anchor_bytes_are_counted() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    assert formulas.penalty_bytes(0.0, shape, "float32") == 2
    assert formulas.penalty_bytes(1.0, shape, "float32") == 6
    assert formulas.penalty_bytes(1.0, shape, "bfloat16") == 4
    assert formulas.fisher_disk(shape, FisherConfig(dtype="bfloat16")) == 4 * shape.parameters


def test_a_fisher_is_summed_in_fp32_whatever_the_dtype_of_training() -> None:
    shape, place = KNOWN["google/gemma-2-2b"], Place("cuda", 8)
    parts = formulas.fisher_memory(shape, ModelConfig(path="x"), FisherConfig(batch_size=1), place)
    assert parts["weights"] + parts["sums"] + parts["gradients"] == 12 * shape.parameters / 8
    longer = formulas.fisher_memory(shape, ModelConfig(path="x"), FisherConfig(batch_size=8, tokens="all"), place)
    assert longer["activations"] == pytest.approx(8 * parts["activations"])
    assert longer["loss"] > parts["loss"] >= 4 * shape.embedding


def test_evaluation_memory_peak_is_the_logits_of_a_batch() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    parts = formulas.evaluation_memory(shape, ModelConfig(path="x"), EvaluateConfig(batch_size=4, max_length=1024))
    assert parts == {"weights": 2 * shape.parameters, "loss": 4 * 1024 * 256000 * 6}
    judged = formulas.evaluation_memory(shape, ModelConfig(path="x"), EvaluateConfig(), judge=13e9)
    assert judged["judge"] == 26e9


def test_training_disk_space_is_counted() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    kept, most = formulas.training_disk(shape, ModelConfig(path="x"), TrainConfig(keep_optimizer=False))
    assert (kept, most) == (6 * shape.parameters, (2 + 36) * shape.parameters)
    kept, most = formulas.training_disk(shape, ModelConfig(path="x"), TrainConfig(export_at=(0.5, 1.0)))
    assert (kept, most) == ((4 + 24) * shape.parameters, (4 + 36) * shape.parameters)


def test_one_rank_communicates_nothing_and_accumulation_repeats_communication() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    assert sum(formulas.training_traffic(shape, TrainConfig(), "bfloat16", 1).values()) == 0
    once = formulas.training_traffic(shape, TrainConfig(), "bfloat16", 8)
    assert once["gather"] == 7 / 8 * 2 * (2 * (shape.parameters - shape.root) + shape.root)
    assert once["reduce"] == 7 / 8 * 4 * shape.parameters
    twice = formulas.training_traffic(shape, TrainConfig(), "bfloat16", 8, microbatches=2)
    assert (twice["gather"], twice["reduce"]) == (2 * once["gather"], 2 * once["reduce"])
    assert formulas.fisher_traffic(shape, 8)["gather"] == 2 * once["gather"]
    replicas = formulas.training_traffic(shape, TrainConfig(dp_replicate=2), "bfloat16", 4)
    assert replicas["replicas"] == pytest.approx(4 * shape.parameters / 4)


# ---------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("length", [16, 100])
@pytest.mark.parametrize("kind", MODELS)
def test_flop_estimate_equals_that_of_training_metrics(kind: str, length: int) -> None:
    config = config_of(kind)
    assert formulas.flop_per_token(shape_like(config), length) == metrics.flop_per_token(config, length)


def test_fisher_and_evaluation_flop_are_counted() -> None:
    shape = KNOWN["google/gemma-2-2b"]
    layers = 6 * (shape.matmul_parameters - shape.embedding)
    assert formulas.fisher_flop(shape, 10) > 10 * formulas.FISHER_MEAN * layers
    assert formulas.fisher_flop(shape, 10) < 10.5 * formulas.FISHER_MEAN * layers
    assert formulas.fisher_square_bytes(shape, 2) == 24 * shape.parameters
    assert formulas.evaluation_flop(shape, 3.0) == 6e6 * shape.matmul_parameters
    assert formulas.training_flop(shape, 100, 512) == 100 * formulas.flop_per_token(shape, 512)


def test_gpu_peaks_equal_those_used_for_mfu() -> None:
    for name, peak in metrics.PEAK_TFLOPS.items():
        assert GPUS[name].bf16_tflops == peak


def test_rates_are_a_share_of_the_data_sheet_or_set_by_the_profile() -> None:
    usual = rates("A100", None)
    assert usual.train == SHARES["train"] * 312
    assert usual.stated == "125 TFLOP/s in training (40% of the data sheet, A100)"
    own = rates("A100", 250.0)
    assert own.train == pytest.approx(250.0)
    assert own.fisher == pytest.approx(2 * usual.fisher, rel=0.01)
    assert "gpu_tflops of the profile, A100" in own.stated
    assert "H100, which is assumed: the profile names none (gpu = …: H200" in rates("", None).stated
