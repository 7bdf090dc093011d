"""Formulas for what a stage will take: memory of a rank, bytes on the disk and on the network, FLOP. Pure; no torch.

docs/scaling.md derives each and says where it stops holding; `benchmarks/scaling.py` and the tests compare them with
what real runs allocate, send and write. Symbols: P parameters, R those outside the layers (embedding and last norm),
E the embedding, H hidden size, I intermediate size, S ranks that share a copy of the model, c bytes of a number in
compute (2 in bf16), T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpc_ewc.config import DataConfig, EvaluateConfig, FisherConfig, ModelConfig, TrainConfig
from hpc_ewc.launch.forecast.shapes import Shape

BYTES = {"float32": 4, "bfloat16": 2}
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Size of the fp32 logits that the chunked loss computes at once: model/loss.py."""
FISHER_ROW = 512
"""Tokens of the longest question of a Fisher's batch; MMLU's, with the paper's prompt, are mostly 80 to 300."""
FISHER_MEAN = 160
"""Tokens of a question on average."""

Parts = dict[str, float]
"""Bytes by what they are for; their sum is the prediction."""


@dataclass(frozen=True)
class Place:
    """The device of a rank, and the ranks that share a copy of the model."""

    device: str
    """cpu or cuda."""
    shards: int
    """S."""

    def attention(self, model: ModelConfig) -> str:
        """The attention that the rank computes; "auto" depends on the device."""
        return model.attention if model.attention != "auto" else "eager" if self.device == "cpu" else "flex_attention"


# ---------------------------------------------------------------------------------------------- activations


def layer_activations(shape: Shape, rows: int, length: int, c: int, attention: str) -> float:
    """Bytes that autograd keeps of one layer for `rows` sequences of `length` tokens, nothing recomputed.

    For each token: four norms keep their input and their normalized values in fp32 (32 H), two of their results are
    inputs of matrices (2 c H); queries, keys, values and the attention's output; gate, its activation, up and their
    product (4 c I). Eager attention repeats keys and values for each head, and keeps the capped scores, their softmax
    in fp32, and that again if it computes in bf16: T numbers per head and token.
    """
    heads, keys = shape.heads_width, shape.keys_width
    if attention == "eager":
        attended = 4 * c * heads
        scores = 4 + (c if shape.softcap else 0) + (c if c < 4 else 0)
    else:  # its own output, and the copy that the output's matrix reads
        attended, scores = c * (3 * heads + 2 * keys), 0
    token = (32 + 2 * c) * shape.hidden_size + attended + 4 * c * shape.intermediate_size
    token += 8 * (heads + keys) if shape.qk_norm else 0
    return float(rows * length * (token + scores * shape.num_attention_heads * length))


def kept_activations(shape: Shape, rows: int, length: int, c: int, attention: str, checkpointing: str) -> float:
    """Bytes that autograd keeps of all layers and the last norm.

    Without checkpointing, `layer_activations` of each layer; with it, those of one layer, and of each layer its input
    ("full") or also the results of its products with weights ("selective").
    """
    layers, one = shape.num_hidden_layers, layer_activations(shape, rows, length, c, attention)
    tokens, hidden = rows * length, shape.hidden_size
    last_norm = tokens * (8 + 2 * c) * hidden
    if checkpointing == "none":
        return layers * one + last_norm
    products = shape.heads_width + 2 * shape.keys_width + 2 * hidden + 2 * shape.intermediate_size
    kept = hidden + (products if checkpointing == "selective" else 0)
    return layers * tokens * c * kept + one + last_norm


# ---------------------------------------------------------------------------------------------- memory of a rank


def training_memory(
    shape: Shape, model: ModelConfig, data: DataConfig, train: TrainConfig, place: Place, penalty: float
) -> Parts:
    """Memory at the highest point of a training step; penalty: bytes per parameter of F and θ* (`penalty_bytes`).

    In shards: fp32 weights 4, AdamW's moments 8, gradients 4, F and θ*. Gathered in `c` bytes: the root's group, and
    two layers, since the next is fetched while one computes. On a CPU the copy of weights and moments from which a
    checkpoint is written during the next steps is in the same memory.
    """
    c, share = BYTES[model.dtype], shape.parameters / place.shards
    rows, length = train.local_batch_size, data.sequence_length
    parts: Parts = {
        "weights": 4 * share,
        "moments": 8 * share,
        "gradients": 4 * share,
        "F and θ*": penalty * share,
        "gathered": float(c * (shape.root + 2 * shape.layer)),
    }
    if place.device == "cpu":
        parts["checkpoint"] = 12 * share
    activations = kept_activations(shape, rows, length, c, place.attention(model), train.activation_checkpointing)
    return parts | _highest(
        activations,
        loss_bytes(shape, rows * length, c, model.loss, place.device),
        # the root's gradient as autograd leaves it, of head and look-up, and its fp32 copy on the way to the shards
        2.0 * c * shape.embedding + 4 * shape.root,
    )


def _highest(activations: float, loss: float, reduction: float) -> Parts:
    """The higher of two points of a backward pass.

    In the loss: all activations, its logits and the embedding's gradient (fp32 sum, and one product). At the end: no
    activations, and the embedding's gradient while it is reduced in fp32.
    """
    if activations + loss >= reduction:
        return {"activations": activations, "loss": loss}
    return {"activations": 0.0, "loss": reduction}


def loss_bytes(shape: Shape, tokens: int, c: int, loss: str, device: str) -> float:
    """Peak memory of head and cross-entropy besides their input and the weight.

    chunked: three fp32 copies of a chunk's logits at once (scores, capped, exponentials), the embedding's gradient
    summed in fp32, and in bf16 a product to be added. full: all logits, twice in `c` bytes, and three times in fp32.
    """
    if loss == "full":
        return float(tokens * shape.vocab_size * (2 * c + 12) + c * shape.embedding)
    logits = min(CHUNK_BYTES[device], 4 * tokens * shape.vocab_size)
    return float(3 * logits + (4 + (c if c < 4 else 0)) * shape.embedding)


def penalty_bytes(strength: float, shape: Shape, fisher_dtype: str) -> float:
    """Bytes per parameter of F and θ* in a training; at λ = 0 only θ* is loaded, to measure the distance from it."""
    return shape.stored_bytes + (BYTES[fisher_dtype] if strength > 0 else 0)


def fisher_memory(shape: Shape, model: ModelConfig, fisher: FisherConfig, place: Place) -> Parts:
    """Memory at the highest point of a batch of the Fisher, all in fp32: sums of squares take the place of moments."""
    share = shape.parameters / place.shards
    rows = fisher.batch_size if fisher.method == "batched" else 1
    scored = rows * (FISHER_ROW if fisher.tokens == "all" else 1)
    parts: Parts = {
        "weights": 4 * share,
        "sums": 4 * share,
        "gradients": 4 * share,
        "gathered": 4.0 * (shape.root + 2 * shape.layer),
    }
    return parts | _highest(
        kept_activations(shape, rows, FISHER_ROW, 4, place.attention(model), "none"),
        16.0 * scored * shape.vocab_size + 4.0 * shape.embedding,
        4.0 * (shape.embedding + shape.root),
    )


def evaluation_memory(shape: Shape, model: ModelConfig, evaluate: EvaluateConfig, judge: float = 0.0) -> Parts:
    """Memory of an evaluation worker with a batch whose prompts fill `max_length`; a larger batch is halved.

    lm-eval takes log-probabilities of the logits of a whole batch in fp32. `judge`: parameters of the model that judges
    answers, which is loaded besides the judged one.
    """
    c, tokens = BYTES[model.dtype], evaluate.batch_size * evaluate.max_length
    parts: Parts = {"weights": float(c * shape.parameters), "loss": float(tokens * shape.vocab_size * (c + 4))}
    return parts | ({"judge": c * judge} if judge else {})


# ---------------------------------------------------------------------------------------------- the network


def training_traffic(shape: Shape, train: TrainConfig, dtype: str, shards: int, microbatches: int = 1) -> Parts:
    """Bytes that a rank receives in an optimizer step, by collective; a ring sends as much.

    A rank lacks (S − 1)/S of a gathered group. Layers are gathered in the forward and again in the backward, the root's
    group once; gradients are reduced in fp32, after each microbatch. Replicas add up their shards of the gradient.
    The rest of a step (loss, norm, agreement to stop) is some hundred bytes.
    """
    c, lacking = BYTES[dtype], (shards - 1) / shards
    replicas = train.dp_replicate
    return {
        "gather": microbatches * lacking * c * (2 * (shape.parameters - shape.root) + shape.root),
        "reduce": microbatches * lacking * 4 * shape.parameters,
        "replicas": microbatches * 2 * (replicas - 1) / replicas * 4 * shape.parameters / shards,
    }


def fisher_traffic(shape: Shape, shards: int) -> Parts:
    """Bytes that a rank receives for a batch of examples: those of a microbatch in fp32."""
    return training_traffic(shape, TrainConfig(), "float32", shards)


# ---------------------------------------------------------------------------------------------- the disk


def fisher_disk(shape: Shape, fisher: FisherConfig) -> float:
    """Bytes of F, and of the anchor in the smallest dtype that loses nothing, which is the published one."""
    return float(shape.parameters * (BYTES[fisher.dtype] + shape.stored_bytes))


def checkpoint_disk(shape: Shape) -> float:
    """Bytes of fp32 weights and AdamW's two moments."""
    return 12.0 * shape.parameters


def training_disk(shape: Shape, model: ModelConfig, train: TrainConfig) -> tuple[float, float]:
    """Bytes that a finished training keeps, and its peak while it runs: one checkpoint more than are kept."""
    exports = len(train.export_at) * BYTES[model.dtype] * shape.parameters
    last = train.keep_checkpoints * checkpoint_disk(shape) if train.keep_optimizer else 4.0 * shape.parameters
    return exports + last, exports + (train.keep_checkpoints + 1) * checkpoint_disk(shape)


# ---------------------------------------------------------------------------------------------- time


def flop_per_token(shape: Shape, length: int) -> float:
    """FLOP per token in training, counted as in `train/metrics.py`: 6 · matmul parameters + attention."""
    full = shape.num_hidden_layers - shape.sliding_layers
    context = 0.0
    for layers, window in ((shape.sliding_layers, min(length, shape.sliding_window)), (full, length)):
        context += layers * (window - window * (window - 1) / (2 * length))
    return 6.0 * shape.matmul_parameters + 12.0 * shape.heads_width * context


def training_flop(shape: Shape, tokens: float, length: int) -> float:
    """FLOP of a whole training; recomputed activations are not counted."""
    return tokens * flop_per_token(shape, length)


def fisher_flop(shape: Shape, examples: float) -> float:
    """FLOP of forward and backward; the head, a third of all FLOP in training, runs on one token of an example."""
    head = 6.0 * shape.embedding
    return examples * (FISHER_MEAN * (flop_per_token(shape, FISHER_MEAN) - head) + head)


def fisher_square_bytes(shape: Shape, examples: float) -> float:
    """Memory traffic of squaring, at most: read the product, read the sum, write the sum, P numbers per example."""
    return 12.0 * shape.parameters * examples


def evaluation_flop(shape: Shape, cost: float) -> float:
    """FLOP of a forward over `cost` million tokens (suites/tasks.py: generated tokens count ten times)."""
    return cost * 1e6 * 2.0 * shape.matmul_parameters
