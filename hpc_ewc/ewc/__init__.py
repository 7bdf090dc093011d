r"""Elastic weight consolidation for any decoder of Transformers, in one process or sharded by FSDP2; tensors only.

EWC keeps what a model can do while it learns something else. With θ* the model before training, the loss becomes

    L(θ) = L_new(θ) + λ/2 Σ_i F_i (θ_i − θ*_i)²                                  Kirkpatrick et al. 2017, eq. 3
    F_i  = 1/N Σ_n (∂ log p_θ*(y_n | x_n) / ∂θ_i)²                               the diagonal Fisher of the old task

where log p(y_n | x_n) is summed over the scored tokens of example n. Call, in this order and on every rank:

    fisher = estimate_fisher(model, batches)                        # before training, on the old task
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_ewc_state(folder, fisher, anchor, facts)                   # optional: safetensors files and a manifest
    state = load_ewc_state(folder, model)                           # at any world size

    penalty = EwcPenalty(model, state.anchor, state.fisher, strength=1e6)   # before the first forward
    loss.backward()                                                 # the last microbatch of a step
    penalty.add_gradient_()                                         # adds λF(θ−θ*) to `.grad`
    optimizer.step()
    penalty.measure()                                               # value and ‖θ−θ*‖, for a log

Shapes and types:
    batches: dicts of input_ids, attention_mask, labels, [B, T] int64; a row is an example, label -100 is not scored.
    fisher, anchor: {fqn: tensor}, each with the shape, device and placements of the model's parameter of that name.
    model: fp32 masters, plain or `fully_shard`-ed; compute may be bf16 in training, fp32 for the Fisher.

`estimate_fisher` has rules for the layers of Gemma 2 and 3; `method="reduce_scatter"` works for any decoder, slowly.
`FisherAccumulator` is `estimate_fisher` step by step, for estimates that stop and resume (`save_fisher_sums`).
`EwcPenalty.proximal_step_` replaces `add_gradient_` at a strength for which gradient steps are too long.
`FusedAdamW` makes clipping, penalty and AdamW one pass over memory. examples/ewc_minimal.py runs all of this.
"""

from hpc_ewc.ewc.files.fisher_sums import load_fisher_sums, save_fisher_sums
from hpc_ewc.ewc.files.state import EwcState, load_ewc_state, save_ewc_state
from hpc_ewc.ewc.fisher.accumulator import FisherAccumulator
from hpc_ewc.ewc.fisher.estimate import estimate_fisher
from hpc_ewc.ewc.fisher.results import FisherEstimate, FisherSums, NonFiniteExampleError
from hpc_ewc.ewc.penalty.fused_adamw import FusedAdamW
from hpc_ewc.ewc.penalty.penalty import EwcPenalty, PenaltyMeasures

__all__ = [
    "EwcPenalty",
    "EwcState",
    "FisherAccumulator",
    "FisherEstimate",
    "FisherSums",
    "FusedAdamW",
    "NonFiniteExampleError",
    "PenaltyMeasures",
    "estimate_fisher",
    "load_ewc_state",
    "load_fisher_sums",
    "save_ewc_state",
    "save_fisher_sums",
]
