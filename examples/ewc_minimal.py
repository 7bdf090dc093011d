"""All of elastic weight consolidation on one screen: a tiny Gemma 2 learns one text, then another, and keeps the first.

    python examples/ewc_minimal.py

The second training runs without and with the penalty; the loss of the first text shows what the penalty keeps. It takes
some seconds on a CPU and needs no network.
"""

from __future__ import annotations

import copy

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from hpc_ewc.ewc import EwcPenalty, estimate_fisher

OLD = "The cat sat on the mat. The dog ran to the house. " * 2
NEW = "Katė tupėjo ant kilimo. Šuo nubėgo į namus. " * 2
LENGTH, ROWS, STEPS = 32, 16, 150


def build_model() -> Gemma2ForCausalLM:
    """Returns a decoder of 17,568 parameters whose tokens are bytes."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Gemma2ForCausalLM(config)


def sample_batch(text: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Returns ROWS random windows of the text, [B, T] int64; the first token of a row is not scored."""
    tokens = torch.tensor(list(text.encode()))
    starts = torch.randint(len(tokens) - LENGTH, (ROWS, 1), generator=generator)
    ids = tokens[starts + torch.arange(LENGTH)]
    return {"input_ids": ids, "labels": torch.cat([torch.full((ROWS, 1), -100), ids[:, 1:]], dim=1)}


def train(model: Gemma2ForCausalLM, text: str, penalty: EwcPenalty | None = None) -> None:
    """Trains the model on the text, with λF(θ−θ*) added to the gradient of each step if there is a penalty."""
    generator, optimizer = torch.Generator().manual_seed(1), torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**sample_batch(text, generator)).loss.backward()
        if penalty is not None:
            penalty.add_gradient_()
        optimizer.step()


def loss_on(model: Gemma2ForCausalLM, text: str) -> float:
    """Returns the mean loss over windows of the text, in nats per byte."""
    with torch.no_grad():
        return float(model(**sample_batch(text, torch.Generator().manual_seed(2))).loss)


def main() -> None:
    """Prints the losses of both texts before the second training, and after it at λ = 0 and λ > 0."""
    torch.set_num_threads(1)  # so small a model is slower on several
    model, generator = build_model(), torch.Generator().manual_seed(3)
    train(model, OLD)
    fisher = estimate_fisher(model, [sample_batch(OLD, generator) for _ in range(8)])
    anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    print(f"before:    old text {loss_on(model, OLD):.3f}, new text {loss_on(model, NEW):.3f} nats per byte")
    for strength in (0.0, 100.0):
        tuned = copy.deepcopy(model)
        train(tuned, NEW, EwcPenalty(tuned, anchor, fisher, strength))
        print(f"λ = {strength:<6g} old text {loss_on(tuned, OLD):.3f}, new text {loss_on(tuned, NEW):.3f}")


if __name__ == "__main__":
    main()
