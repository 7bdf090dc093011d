"""The Fisher in one process: any batch and padding, independent implementations, and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_ewc.errors import InputError
from hpc_ewc.ewc import NonFiniteExampleError, estimate_fisher
from hpc_ewc.ewc.fisher.batches import draw_labels, read_batch
from hpc_ewc.ewc.fisher.squares import squared_products
from tests.distributed.fisher_oracle import (
    Example,
    collate,
    fisher_by_definition,
    make_examples,
    worst_error,
)
from tests.distributed.tiny_gemma import VOCABULARY, Float64, build_gemma

# ---------------------------------------------------------------------------------------------- any batch


@st.composite
def batched_examples(draw: st.DrawFn) -> tuple[list[Example], list[dict[str, Tensor]]]:
    """Draw examples with repeated tokens, and the same examples in batches padded on either side."""
    examples = []
    for _ in range(draw(st.integers(1, 6))):
        ids = torch.tensor(draw(st.lists(st.integers(1, 9), min_size=2, max_size=10)))
        labels = torch.full_like(ids, -100)
        for position in draw(st.sets(st.integers(1, len(ids) - 1))):
            labels[position] = draw(st.integers(0, VOCABULARY - 1))
        examples.append((ids, labels))
    batches, rest = [], examples
    while rest:
        size = draw(st.integers(1, len(rest)))
        batches.append(collate(rest[:size], draw(st.sampled_from(["left", "right"])), draw(st.integers(0, 3))))
        rest = rest[size:]
    return examples, batches


@settings(max_examples=20)
@given(data=batched_examples(), kind=st.sampled_from(["gemma2", "gemma3"]), accumulate=st.integers(1, 3))
def test_any_batches_and_padding_give_the_defined_fisher(data: Any, kind: str, accumulate: int) -> None:
    examples, batches = data
    if not any(bool((labels != -100).any()) for _, labels in examples):
        with pytest.raises(InputError, match="no row of any batch has a scored token"):
            estimate_fisher(build_gemma(kind), batches)
        return
    want = fisher_by_definition(build_gemma(kind), examples)
    with Float64():  # this tests the formula; the fixed examples bound fp32 rounding
        got = estimate_fisher(build_gemma(kind).double(), batches, accumulate=accumulate)
    assert worst_error(got, want, negligible=1e-8) < 1e-7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the tiles of a GPU, and its GEMMs")
@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_the_fisher_on_a_gpu_equals_the_definition(kind: str) -> None:
    examples = make_examples(9, "some")
    want = fisher_by_definition(build_gemma(kind), examples)
    batches = [{name: tensor.cuda() for name, tensor in collate(examples).items()}]
    got = {name: fisher.cpu() for name, fisher in estimate_fisher(build_gemma(kind).cuda(), batches).items()}
    assert worst_error(got, want) < 1e-5


@pytest.mark.parametrize("overrides", [{"attention_bias": True}, {"tie_word_embeddings": False}])
def test_biases_and_an_untied_head_are_covered(overrides: dict[str, Any]) -> None:
    examples = make_examples(5, "some")
    want = fisher_by_definition(build_gemma(**overrides), examples)
    assert ("model.layers.0.self_attn.q_proj.bias" in want) or ("lm_head.weight" in want)
    assert worst_error(estimate_fisher(build_gemma(**overrides), [collate(examples)]), want) < 1e-5


def test_frozen_parameters_have_no_fisher_and_do_not_change_others() -> None:
    examples = make_examples(4, "answer")
    want = fisher_by_definition(build_gemma(), examples)
    model = build_gemma()
    model.model.layers[0].mlp.up_proj.requires_grad_(False)
    model.model.norm.requires_grad_(False)
    fisher = estimate_fisher(model, [collate(examples)])
    assert set(want) - set(fisher) == {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
    assert worst_error(fisher, {name: want[name] for name in fisher}) < 1e-5


def test_squares_of_long_rows_are_computed_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_ewc.ewc.fisher.squares.CPU_TILE", 40)
    generator = torch.Generator().manual_seed(0)
    g, a = (torch.randn(3, 5, width, generator=generator, dtype=torch.float64) for width in (11, 7))
    want = torch.stack([(g[n].t() @ a[n]) ** 2 for n in range(3)]).sum(0)
    torch.testing.assert_close(squared_products(g, a), want)
    g[1, :2] = 0.0
    g[1, 4:] = 0.0
    want = torch.stack([(g[n].t() @ a[n]) ** 2 for n in range(3)]).sum(0)
    torch.testing.assert_close(squared_products(g, a, [(0, 5), (2, 4), (0, 5)]), want)


def test_the_squared_batch_mean_differs_from_the_fisher() -> None:
    examples = make_examples(8, "all")
    want = fisher_by_definition(build_gemma(), examples)
    model = build_gemma()
    batch = collate(examples)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum").div(8).backward()
    trace = sum(float(f.sum()) for f in want.values())
    assert sum(float(p.grad.square().sum()) for p in model.parameters()) < 0.5 * trace


# ---------------------------------------------------------------------------------------------- drawn labels


def test_sampled_labels_estimate_the_true_fisher() -> None:
    """Compare with Σ_y p(y) (∂ log p(y))² over all labels of the vocabulary, for one example."""
    sizes = {"vocab_size": 12, "num_hidden_layers": 1}
    ids = torch.tensor([3, 9, 1, 4])
    labels = torch.tensor([-100, -100, -100, 4])
    probabilities = build_gemma(**sizes).eval()(input_ids=ids[None]).logits[0, -2].softmax(-1).tolist()
    want: dict[str, Any] = {}
    for label, p in enumerate(probabilities):
        one = torch.tensor([-100, -100, -100, label])
        for name, square in fisher_by_definition(build_gemma(**sizes), [(ids, one)]).items():
            want[name] = want.get(name, 0.0) + p * square
    batch = collate([(ids, labels)])
    got = estimate_fisher(build_gemma(**sizes), [batch], labels="sampled", samples=400, seed=1)
    assert worst_error(got, want) < 0.2
    gold = estimate_fisher(build_gemma(**sizes), [batch])
    assert worst_error(gold, want) > 0.5


def test_sampled_labels_depend_only_on_the_model_and_the_seed() -> None:
    examples = make_examples(3, "all")
    rows = read_batch(collate(examples, "right"), torch.device("cpu"))
    padded = read_batch(collate(examples[::-1], "left", extra=4), torch.device("cpu"))
    logits = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(0))
    wide = logits.expand(*rows.positions.shape, 5)
    drawn = [draw_labels(rows, wide, seed=0, sample=s) for s in range(500)]
    counts = torch.bincount(torch.stack(drawn)[:, 0, 0], minlength=5) / 500
    torch.testing.assert_close(counts, logits.softmax(-1)[0, 0], atol=0.07, rtol=0)
    assert torch.equal(draw_labels(padded, wide, 0, 0), drawn[0].flip(0))  # neither batch nor padding matters
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], draw_labels(rows, wide, seed=1, sample=0))
    assert torch.equal(drawn[0] == -100, rows.targets == -100)


# ---------------------------------------------------------------------------------------------- other libraries


class Classifier(nn.Module):
    """A model with a language model's interface and layers BackPACK supports: frozen features, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Embedding(VOCABULARY, 16).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, VOCABULARY))

    def forward(self, input_ids: Tensor, logits_to_keep: Tensor, **ignored: Any) -> Any:
        hidden = torch.take_along_dim(self.features(input_ids), logits_to_keep[..., None], dim=1)
        return SimpleNamespace(logits=self.body(hidden))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # BackPACK's first layer
def test_backpack_agrees_on_linear_layers() -> None:
    backpack = pytest.importorskip(
        "backpack", reason="BackPACK is not installed (pip install --no-deps, see pyproject)"
    )
    from backpack.extensions import SumGradSquared

    examples = make_examples(9, "answer")
    fisher = estimate_fisher(Classifier(), [collate(examples[:5]), collate(examples[5:], "left")])
    model = Classifier()
    body, loss = backpack.extend(model.body), backpack.extend(nn.CrossEntropyLoss(reduction="sum"))
    features = torch.stack([model.features(ids[-2]) for ids, _ in examples])
    with backpack.backpack(SumGradSquared()):
        loss(body(features), torch.tensor([int(ids[-1]) for ids, _ in examples])).backward()
    for name, parameter in body.named_parameters():
        torch.testing.assert_close(fisher[f"body.{name}"], parameter.sum_grad_squared / 9, rtol=1e-5, atol=1e-9)


def test_vmap_of_grad_agrees_on_the_whole_model() -> None:
    """Compare with torch.func's per-example gradients, which are independent of our rules."""
    model = build_gemma().eval()
    examples = [(ids[:5], labels[:5]) for ids, labels in make_examples(40, "all") if len(ids) >= 5][:6]
    batch = collate(examples)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        tied = parameters | {"lm_head.weight": parameters["model.embed_tokens.weight"]}
        mask = {"full_attention": None, "sliding_attention": None}  # vmap cannot build masks; 5 tokens need causal ones
        causal = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
        near = causal + torch.full((5, 5), torch.finfo(torch.float32).min).tril(-4)[None, None]
        mask = {"full_attention": causal, "sliding_attention": near}
        out = torch.func.functional_call(model, tied, (), {"input_ids": ids[None], "attention_mask": mask})
        return F.cross_entropy(out.logits[0, :-1], labels[1:], reduction="sum")

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        parameters, batch["input_ids"], batch["labels"]
    )
    want = {name: g.square().mean(0).double() for name, g in per_example.items()}
    assert worst_error(estimate_fisher(model, [batch]), want) < 1e-5


# ---------------------------------------------------------------------------------------------- unchanged model


def test_the_model_is_restored_even_after_an_error() -> None:
    model = build_gemma().train()
    model.model.norm.eval()
    batch = collate(make_examples(3, "all"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    estimate_fisher(model, [batch])
    with pytest.raises(InputError, match="first token"):
        estimate_fisher(model, [batch, batch | {"labels": batch["input_ids"]}])
    assert model.training and not model.model.norm.training
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


# ---------------------------------------------------------------------------------------------- refusals


def refused(message: str, model: Any, batch: dict[str, Tensor] | None = None, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        estimate_fisher(model, [batch or collate(make_examples(3, "answer"))], **options)


class Odd(Classifier):
    """A Classifier with one feature that the rules do not support."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        self.odd = odd
        if odd == "kind":
            self.body.append(nn.PReLU())
        if odd == "parameter":
            self.scale = nn.Parameter(torch.ones(()))
        if odd == "subclass":
            self.body[0] = type("Lora", (nn.Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x) * 2})(
                16, 12
            )
        if odd == "shared":
            self.body[2] = nn.Linear(12, 12)
            self.body.append(nn.Linear(12, VOCABULARY))
            self.body.insert(1, nn.Linear(12, 12))
            self.body[3].weight = self.body[1].weight
        if odd == "twice":
            self.body.insert(1, nn.Linear(12, 12))

    def forward(self, input_ids: Tensor, logits_to_keep: Tensor, **ignored: Any) -> Any:
        hidden = torch.take_along_dim(self.features(input_ids), logits_to_keep[..., None], dim=1)
        if self.odd == "twice":
            return SimpleNamespace(logits=self.body[3](self.body[1](self.body[1](self.body[0](hidden)))))
        if self.odd == "rows":
            flat = hidden.flatten(0, 1).repeat(2, 1)
            return SimpleNamespace(logits=self.body(flat)[: len(flat) // 2].unflatten(0, hidden.shape[:2]))
        if self.odd == "passed by":
            hidden = F.linear(hidden, self.body[0].weight, self.body[0].bias)
            return SimpleNamespace(logits=self.body[1:](hidden))
        if self.odd == "all logits":
            return SimpleNamespace(logits=self.body(self.features(input_ids)))
        return SimpleNamespace(logits=self.body(hidden))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ("kind", "no rule makes the batched Fisher of parameter 'body.3.weight' of a PReLU; freeze it, or use"),
        ("parameter", "no rule makes the batched Fisher of parameter 'scale' of a Odd"),
        ("subclass", "no rule .* parameter 'body.0.bias' of a Lora"),
        ("shared", "parameter 'body.1.weight' is shared by 2 layers; .* use method 'reduce_scatter'"),
        ("twice", "parameter 'body.1.weight' is used twice in one forward; .* use method 'reduce_scatter'"),
        ("rows", r"the layer of 'body.2.weight' works on 6 rows, the batch has 3: its rows are not examples"),
        ("passed by", r"parameter 'body.0.weight' has a gradient that its layer's rule did not make"),
        ("all logits", r"gives logits \[3, \d+, 101\] for positions \[3, 1\]: its forward does not take"),
    ],
)
def test_unsupported_models_are_named_and_reduce_scatter_handles_them(odd: str, message: str) -> None:
    refused(message, Odd(odd))
    if odd == "all logits":
        return
    # reduce_scatter needs no rules and is exact for each of them
    model, examples = Odd(odd), make_examples(3, "answer")
    want = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for ids, _ in examples:
        model.zero_grad()
        logits = model(ids[None], torch.tensor([[len(ids) - 2]])).logits
        F.cross_entropy(logits[0], ids[-1:]).backward()
        for name, square in want.items():
            gradient = model.get_parameter(name).grad
            square += 0.0 if gradient is None else gradient**2 / 3
    assert worst_error(estimate_fisher(model, [collate(examples)], method="reduce_scatter"), want) < 1e-5


def test_bad_batches_are_refused() -> None:
    model, good = build_gemma(), collate(make_examples(3, "answer"))
    refused(r"a batch has the keys \['input_ids'\]; needed are", model, {"input_ids": good["input_ids"]})
    refused(r"all must be \[rows, positions\]", model, good | {"labels": good["labels"][:, 1:]})
    refused("scores the first token of a row", model, good | {"labels": good["input_ids"]})
    everything = torch.cat([torch.full((3, 1), -100), good["input_ids"][:, 1:]], dim=1)
    refused("scores a token that is padding, or follows padding", model, good | {"labels": everything})


def test_bad_settings_are_refused() -> None:
    model = build_gemma()
    refused("labels is 'silver'; allowed are 'gold' and 'sampled'", model, labels="silver")
    refused("method is 'naive'; allowed are 'batched' and 'reduce_scatter'", model, method="naive")
    refused("on_nonfinite is 'zero'; allowed are 'error' and 'skip'", model, on_nonfinite="zero")
    refused("samples is 2; allowed are numbers from 1, and only 1 with gold labels", model, samples=2)
    refused("samples is 0; allowed", model, labels="sampled", samples=0)
    refused("is torch.bfloat16; the Fisher needs fp32 parameters", build_gemma().bfloat16())
    refused("the model has no trainable parameter", build_gemma().requires_grad_(False))
    dropping = build_gemma(attention_dropout=0.1)
    dropping.activation_checkpointing_enable()
    refused("drops activations at rate 0.1 in training mode", dropping.train())


def test_a_square_that_overflows_is_named() -> None:
    model = Classifier()
    model.body = nn.Sequential(nn.Linear(16, VOCABULARY))
    model.features.weight.data.mul_(1e20)  # gradients too are finite: their squares are not
    refused("the Fisher of 'body.0.weight' overflows fp32: gradients above 1e19 were squared", model)
    refused("the gradient of 3 examples is not finite", model, method="reduce_scatter")


def test_a_non_finite_example_is_named_by_position_by_default() -> None:
    model = Classifier()
    examples = make_examples(4, "answer")
    model.features.weight.data[int(examples[2][0][-2])] = float("inf")
    with pytest.raises(NonFiniteExampleError, match=r"gradient of 1 examples is not finite: 2 \(rank 0\)") as raised:
        estimate_fisher(model, [collate(examples[:1]), collate(examples[1:])])
    assert raised.value.samples == [2]
