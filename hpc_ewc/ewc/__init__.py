"""Elastic weight consolidation on shards: the Fisher, the penalty, and their files. Takes tensors only.

fisher  = estimate_fisher(model, batches)                 # {fqn: mean of squared per-example gradients}
save_ewc_state(folder, fisher, anchor, facts)             # safetensors and a manifest
state   = load_ewc_state(folder, model)                   # laid out as the model's parameters, any world size
penalty = EwcPenalty(model, state.anchor, state.fisher, strength=1e6)
penalty.add_gradient_()                                   # after the last backward, once a step
"""

from hpc_ewc.ewc.accumulator import FisherAccumulator
from hpc_ewc.ewc.estimate import FisherEstimate, FisherSums, NonFiniteExampleError
from hpc_ewc.ewc.fisher import estimate_fisher
from hpc_ewc.ewc.one_pass import OnePass
from hpc_ewc.ewc.partial import load_fisher_sums, save_fisher_sums
from hpc_ewc.ewc.penalty import EwcPenalty, FreeParameters, Measures
from hpc_ewc.ewc.state import EwcState, load_ewc_state, save_ewc_state

__all__ = [
    "EwcPenalty",
    "EwcState",
    "FisherAccumulator",
    "FisherEstimate",
    "FisherSums",
    "FreeParameters",
    "Measures",
    "NonFiniteExampleError",
    "OnePass",
    "estimate_fisher",
    "load_ewc_state",
    "load_fisher_sums",
    "save_ewc_state",
    "save_fisher_sums",
]
