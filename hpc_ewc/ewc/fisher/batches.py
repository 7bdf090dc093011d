"""Batches for the Fisher: their scored positions, the labels drawn for them, and their padding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_ewc.errors import InputError

NOT_SCORED = -100


@dataclass(frozen=True)
class Rows:
    """Checked rows of a batch; one row is one example. K is the largest number of scored tokens in a row.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] int64.
        position_ids: [B, T] int64, counted from the first token of a row that is not padding.
        positions: [B, K] int64, the positions that predict the scored tokens: one before each scored token.
        targets: [B, K] int64, the scored tokens, -100 where a row has fewer than K.
        spans: first and last position + 1 of each row that are not padding; None if no row has padding.
        examples: [B], the number of each row: the caller's own, or its index among this rank's rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    spans: list[tuple[int, int]] | None
    examples: list[int]

    def scored(self) -> int:
        """Returns the number of rows with a scored token, which N counts."""
        return int((self.targets != NOT_SCORED).any(1).sum())

    def select(self, rows: Sequence[int]) -> Rows | None:
        """Returns these rows alone, cut to the longest of them; None if `rows` is empty."""
        if not rows:
            return None
        index = torch.tensor(rows, device=self.input_ids.device)
        mask, targets = self.attention_mask[index], self.targets[index]
        used = mask.any(0).nonzero().flatten()
        begin, end = int(used[0]), int(used[-1]) + 1
        kept = max(1, int((targets != NOT_SCORED).sum(1).max()))
        return Rows(
            self.input_ids[index, begin:end],
            mask[:, begin:end],
            self.position_ids[index, begin:end],
            (self.positions[index, :kept] - begin).clamp(0, end - begin - 1),
            targets[:, :kept],
            _spans(mask[:, begin:end]),
            [self.examples[row] for row in rows],
        )


def read_batch(batch: Mapping[str, Tensor], device: torch.device, first: int = 0) -> Rows:
    """Returns the rows of a batch, on `device`. No collective.

    Args:
        batch: input_ids, labels, optionally attention_mask, all [B, T] int64, and optionally examples [B]. A label
            stands under its token, as in Transformers: the one at t is predicted from t − 1.
        device: of the model.
        first: without `examples`, rows are numbered from here.

    Raises:
        InputError: a key or a shape is missing or wrong, or a token is scored that cannot be.
    """
    for key in ("input_ids", "labels"):
        if key not in batch:
            raise InputError(f"a batch has the keys {sorted(batch)}; needed are input_ids, attention_mask and labels")
    ids = batch["input_ids"].to(device)
    labels = batch["labels"].to(device)
    mask = batch.get("attention_mask", torch.ones_like(ids)).to(device)
    if ids.ndim != 2 or ids.numel() == 0 or labels.shape != ids.shape or mask.shape != ids.shape:
        raise InputError(
            f"a batch has input_ids {list(ids.shape)}, attention_mask {list(mask.shape)} and labels "
            f"{list(labels.shape)}; all must be [rows, positions], and not empty"
        )
    is_scored = labels != NOT_SCORED
    if bool(is_scored[:, 0].any()):
        raise InputError("a batch scores the first token of a row, which nothing predicts; its label must be -100")
    # both ends of a prediction must be real tokens
    if bool((is_scored & (mask == 0)).any()) or bool((is_scored[:, 1:] & (mask[:, :-1] == 0)).any()):
        raise InputError("a batch scores a token that is padding, or follows padding; its label must be -100")
    shifted = F.pad(labels[:, 1:], (0, 1), value=NOT_SCORED)
    counts = (shifted != NOT_SCORED).sum(1)
    kept = max(1, int(counts.max()))
    # a stable sort puts each row's scored positions first, in order
    positions = (shifted == NOT_SCORED).to(torch.int8).argsort(dim=1, stable=True)[:, :kept]
    examples = batch["examples"].tolist() if "examples" in batch else list(range(first, first + len(ids)))
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    return Rows(ids, mask, position_ids, positions, shifted.gather(1, positions), _spans(mask), examples)


def empty_rows(device: torch.device) -> Rows:
    """Returns one row that scores nothing, for the forward and backward of a rank that has run out of batches."""
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    none = torch.full((1, 1), NOT_SCORED, dtype=torch.int64, device=device)
    position = torch.arange(2, device=device)[None]
    return Rows(ids, torch.ones_like(ids), position, torch.zeros_like(none), none, None, [-1])


def _spans(mask: Tensor) -> list[tuple[int, int]] | None:
    if bool(mask.all()):
        return None
    first = mask.argmax(1)
    last = mask.shape[1] - mask.flip(1).argmax(1)
    return list(zip(first.tolist(), last.tolist(), strict=True))


def draw_labels(rows: Rows, logits: Tensor, seed: int, sample: int) -> Tensor:
    """Returns targets drawn from the model's own distribution at the scored positions.

    The random numbers of a row depend on its tokens, `seed` and `sample` alone: batches, padding and ranks do not
    change them. Drawn by inversion: the first token at which the cumulated probability passes a uniform number.

    Args:
        rows: B rows with K scored positions.
        logits: [B, K, V] at those positions.
        seed: of all draws.
        sample: number of the draw, from 0.

    Returns:
        [B, K] int64, -100 where nothing is scored.
    """
    targets = torch.full_like(rows.targets, NOT_SCORED)
    for row, (ids, mask) in enumerate(zip(rows.input_ids.cpu(), rows.attention_mask.cpu(), strict=True)):
        kept = rows.targets[row] != NOT_SCORED
        if not bool(kept.any()):
            continue
        cumulated = logits[row, kept].double().softmax(-1).cumsum(-1)
        numbers = _uniform(ids[mask != 0], int(kept.sum()), seed, sample).to(logits.device)
        drawn = torch.searchsorted(cumulated, (numbers * cumulated[:, -1])[:, None], right=True)[:, 0]
        targets[row, kept] = drawn.clamp(max=logits.shape[-1] - 1)
    return targets


def _uniform(tokens: Tensor, count: int, seed: int, sample: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed} {sample} {tokens.tolist()}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.rand(count, generator=generator, dtype=torch.float64)
