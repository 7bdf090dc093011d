"""The shape of a Gemma: how many parameters stand where, from its config.json, or by name where that is not here yet.

`H` width, `V` vocabulary, `I` width of the MLP, `L` layers; the head is the embedding (tied).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, ConfigError, did_you_mean
from hpc_ewc.model_folder import FAMILIES


@dataclass(frozen=True)
class Shape:
    """What a forecast needs to know of a model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int
    sliding_layers: int
    """How many of the layers attend to a window alone."""
    softcap: bool = True
    """Attention scores are capped: Gemma 2."""
    qk_norm: bool = False
    """Queries and keys are normalized: Gemma 3."""
    stored_bytes: int = 2
    """A parameter in the published files."""

    @property
    def heads_width(self) -> int:
        """Queries, or the attention's output."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys_width(self) -> int:
        """Keys, or values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer that are multiplied with every token."""
        attention = self.hidden_size * (2 * self.heads_width + 2 * self.keys_width)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def layer(self) -> int:
        """Parameters of a layer: FSDP2 gathers them together."""
        return self.layer_matrices + 4 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, which is the head."""
        return self.vocab_size * self.hidden_size

    @property
    def root(self) -> int:
        """Parameters outside the layers: the root's group, gathered from the first forward to the last backward."""
        return self.embedding + self.hidden_size

    @property
    def parameters(self) -> int:
        """All of them, P."""
        return self.num_hidden_layers * self.layer + self.root

    @property
    def matmul_parameters(self) -> int:
        """Those that a token is multiplied with: matrices and head, not the look-up, not the norms."""
        return self.num_hidden_layers * self.layer_matrices + self.embedding


def _gemma2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> Shape:
    return Shape(256000, hidden, intermediate, layers, heads, kv_heads, head_dim, 4096, (layers + 1) // 2)


def _gemma3(hidden: int, intermediate: int, layers: int, heads: int) -> Shape:
    sliding = layers - layers // 6  # each sixth layer sees everything
    return Shape(262144, hidden, intermediate, layers, heads, 1, 256, 512, sliding, softcap=False, qk_norm=True)


KNOWN = {
    "google/gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4, 256),
    "google/gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8, 256),
    "google/gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, 128),
    "google/gemma-3-270m": _gemma3(640, 2048, 18, 4),
    "google/gemma-3-1b": _gemma3(1152, 6912, 26, 4),
}
"""By hub id, from the models' published configurations; the instruction-tuned ones (-it) have the same shapes."""


def known_shape(name: str) -> Shape | None:
    """The shape that goes with a hub id."""
    return KNOWN.get(name.removesuffix("-it").replace("gemma-3-1b-pt", "gemma-3-1b"))


def read_shape(path: Path) -> Shape:
    """The shape in a config.json, or in the one of a folder.

    Raises:
        ConfigError: no such file, not a Gemma of `FAMILIES`, or a key is missing.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        return shape_of(records.read_json(path), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a model's config.json, or its folder, is wanted") from None
    except ArtefactError as error:
        raise ConfigError(f"{error}; a model's config.json is wanted") from None


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a configuration describes; `where` is what errors name."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ConfigError(f"{where}: model_type is {kind!r}; allowed are {', '.join(FAMILIES)}")
    names = [field.name for field in dataclasses.fields(Shape)]
    plain = {name: config[name] for name in names if name in config}
    layers = config.get("num_hidden_layers", 0)
    kinds = config.get("layer_types")
    if kinds is None:  # as published before transformers wrote them out
        every = 2 if kind == "gemma2" else int(config.get("sliding_window_pattern", 6))
        kinds = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    plain["sliding_layers"] = sum(name == "sliding_attention" for name in kinds)
    plain |= {"softcap": config.get("attn_logit_softcapping") is not None, "qk_norm": kind == "gemma3_text"}
    plain["stored_bytes"] = 4 if dtype == "float32" else 2
    missing = [name for name in names[:7] if not isinstance(plain.get(name), int)]
    if missing:
        raise ConfigError(f"{where}: no number in {', '.join(missing)}; is it the configuration of a whole model?")
    return Shape(**{"sliding_window": 4096 if kind == "gemma2" else 512} | plain)


def find_shape(name: str, folder: Path, given: Path | None = None) -> tuple[Shape | None, str]:
    """The shape of a model and, in words, how it is known; None where it is not.

    Args:
        name: [model] path.
        folder: where it lies, or would lie.
        given: a config.json that the user named.

    Raises:
        ConfigError: a configuration that cannot be one of a Gemma.
    """
    if given is not None:
        return read_shape(given), f"by {given}"
    if (folder / "config.json").is_file():
        try:
            return read_shape(folder), "by its config.json"
        except ConfigError as error:
            return None, str(error)
    shape = known_shape(name)
    if shape is not None:
        return shape, "by its published shape"
    return None, f"give its config.json with --config{did_you_mean(name, KNOWN)}"
