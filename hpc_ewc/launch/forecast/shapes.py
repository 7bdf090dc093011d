"""The shape of a Gemma: the sizes of its parts, from its config.json, or by name if that is not on this machine yet.

The head is the embedding (tied).
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
    """The sizes of a model that a forecast needs, named as in config.json, and the parameters of its parts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int
    sliding_layers: int
    """Number of layers whose attention is limited to a window."""
    softcap: bool = True
    """Attention scores are capped: Gemma 2."""
    qk_norm: bool = False
    """Queries and keys are normalized: Gemma 3."""
    stored_bytes: int = 2
    """Bytes of a parameter in the published files."""

    @property
    def heads_width(self) -> int:
        """Width of the queries, and of the attention's output."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys_width(self) -> int:
        """Width of the keys, and of the values."""
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
        """All parameters, P."""
        return self.num_hidden_layers * self.layer + self.root

    @property
    def matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with: matrices and head, not the look-up, not the norms."""
        return self.num_hidden_layers * self.layer_matrices + self.embedding


def _gemma2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> Shape:
    return Shape(256000, hidden, intermediate, layers, heads, kv_heads, head_dim, 4096, (layers + 1) // 2)


def _gemma3(hidden: int, intermediate: int, layers: int, heads: int) -> Shape:
    sliding = layers - layers // 6  # every sixth layer has full attention
    return Shape(262144, hidden, intermediate, layers, heads, 1, 256, 512, sliding, softcap=False, qk_norm=True)


KNOWN = {
    "google/gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4, 256),
    "google/gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8, 256),
    "google/gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, 128),
    "google/gemma-3-270m": _gemma3(640, 2048, 18, 4),
    "google/gemma-3-1b": _gemma3(1152, 6912, 26, 4),
}
"""Shapes by hub id, from published configurations, for a dry run before the model is fetched."""


def known_shape(name: str) -> Shape | None:
    """The shape of a model of the hub; instruction-tuned models (-it) have the shape of their base."""
    return KNOWN.get(name.removesuffix("-it").replace("gemma-3-1b-pt", "gemma-3-1b"))


def read_shape(path: Path) -> Shape:
    """The shape by a config.json, given as a file or as its folder.

    Raises:
        ConfigError: no such file, not a Gemma of `FAMILIES`, or a key is missing.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        return shape_of(records.read_json(path), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give a model's config.json or its folder") from None
    except ArtefactError as error:
        raise ConfigError(f"{error}; give a model's config.json") from None


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape of a model with this configuration; `where` names the configuration in errors."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ConfigError(f"{where}: model_type is {kind!r}; allowed are {', '.join(FAMILIES)}")
    names = [field.name for field in dataclasses.fields(Shape)[:7]]
    missing = [name for name in names if not isinstance(config.get(name), int)]
    if missing:
        raise ConfigError(f"{where}: no number in {', '.join(missing)}; is it the configuration of a complete model?")
    layers = config["num_hidden_layers"]
    if kinds := config.get("layer_types"):
        sliding = list(kinds).count("sliding_attention")
    else:  # published before transformers listed them
        sliding = layers - layers // (2 if kind == "gemma2" else int(config.get("sliding_window_pattern", 6)))
    return Shape(
        **{name: config[name] for name in names},
        sliding_window=config.get("sliding_window", 4096 if kind == "gemma2" else 512),
        sliding_layers=sliding,
        softcap=config.get("attn_logit_softcapping") is not None,
        qk_norm=kind == "gemma3_text",
        stored_bytes=4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2,
    )


def find_shape(name: str, folder: Path, given: Path | None = None) -> tuple[Shape | None, str]:
    """The shape of a model and its source in words; None and what to do if it is unknown.

    Args:
        name: [model] path.
        folder: the model's, which may not exist yet.
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
