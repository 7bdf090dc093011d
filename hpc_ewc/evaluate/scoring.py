"""lm-eval's HFLM around one loaded model: BOS exactly once, a stop between batches, room for the first batch.

lm-eval computes every score. What is added here stands around its calls: requests too long for the context keep their
BOS when they are cut, a batch that does not fit is halved, each batch is counted, and the model's head is not asked
about positions that are not scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from hpc_ewc.evaluate.bos import OneBos, Request

logger = logging.getLogger(__name__)

PROBES = 8
"""Requests of the batch-invariance probe: each is scored once more, alone."""


class StopRequested(Exception):  # noqa: N818 - no error, like StopIteration
    """The job was asked to stop between two batches: the cell is dropped."""


class Scorer(OneBos, HFLM):  # type: ignore[misc]
    """One model, one of two ways to put BOS.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: adds BOS (checkpoint.load_tokenizer).
        batch_size: requests at once, at most; halved where memory is short.
        max_length: tokens of context, at most; the model's own limit wins.
        whole_texts: perplexity of documents. HFLM puts BOS before a document itself, so its tokenizer must not
            (`<bos><bos>` costs 20–49 nats a document); questions are the other way round.
        on_batch: called before each batch with the requests in it; may raise StopRequested.
    """

    batch_size_per_gpu: int

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        max_length: int,
        whole_texts: bool,
        on_batch: Callable[[int], None] = lambda requests: None,
    ) -> None:
        positions = getattr(model.config, "max_position_embeddings", max_length)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=min(max_length, positions),
            add_bos_token=not whole_texts,
            softmax_dtype="float32",  # in bfloat16 a log-probability of 8 nats is rounded to 1/32
        )
        self.bos = int(tokenizer.bos_token_id)
        self.first_scored: dict[int, int] = {}
        """By `_rows_hash` of what the model reads, the position whose logits are the first that are needed."""
        self.head_is_free = "logits_to_keep" in signature(model.forward).parameters
        """Whether the model's head can be left out for positions before those."""
        self.on_batch = on_batch
        self.requested = batch_size
        self.begin()
        self.batch_invariance: float | None = None
        """Largest difference, in nats, between a request scored in its batch and alone."""

    def begin(self) -> None:
        """Count anew, for another cell; and take the batch size that was asked for."""
        self.batch_size_per_gpu = self.requested
        self.smallest_batch_size = self.requested
        """Requests at once where memory was shortest."""
        self.truncated = 0
        self.expected = 0
        """Requests that the model will see; those that share a context are one to it."""

    @property
    def window(self) -> int:
        """The last token is only scored, so one more than the model reads."""
        return int(self.max_length) + 1

    @property
    def attention(self) -> str:
        """The kernel that transformers chose."""
        return str(self.model.config._attn_implementation)

    # ------------------------------------------------------------------------------------------ batches

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        """As lm-eval's, without the logits before the first that a request of this batch needs.

        Of a question's tokens only the answer's are scored, and over a vocabulary of 256,000 the head costs more than
        all layers of a small model. lm-eval counts positions from the end, so it takes fewer as they are.
        """
        self.on_batch(len(inps))
        first = min(self.first_scored.get(_rows_hash(row), 0) for row in inps.tolist()) if self.head_is_free else 0
        keep = {"logits_to_keep": inps.shape[1] - first} if first else {}
        hook = self.model.register_forward_pre_hook(lambda model, given, named: (given, named | keep), with_kwargs=True)
        try:
            logits: torch.Tensor = super()._model_call(inps, attn_mask, labels)
        finally:
            hook.remove()
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.on_batch(len(context))
        tokens: torch.Tensor = super()._model_generate(context, *args, **kwargs)
        return tokens

    def _halving(self, run: Callable[[], Any]) -> Any:
        """`run`, and again with half the batch each time that memory runs out.

        Requests are sorted by length, longest first: what does not fit fails at once, with nothing lost.
        """
        while True:
            try:
                return run()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or self.batch_size_per_gpu == 1:
                    raise
                message = str(error).splitlines()[0]
            self._limit_batch(self.batch_size_per_gpu // 2)
            logger.warning("out of memory; batch size is now %d (%s)", self.batch_size_per_gpu, message)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------ scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        requests = [self.fitted(request) for request in requests]
        score = super()._loglikelihood_tokens
        self.first_scored = {}
        for _, context, scored in requests:  # several may share what the model reads, scored from different positions
            read, first = _rows_hash([*context, *scored[:-1]]), len(context) - 1
            self.first_scored[read] = min(first, self.first_scored.get(read, first))
        self.expected = len(self.first_scored)
        by_size: dict[int, list[int]] = {}
        for i, size in enumerate(self._planned([len(context) + len(scored) for _, context, scored in requests])):
            by_size.setdefault(size, []).append(i)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for size in sorted(by_size):
            self._limit_batch(size)
            found = self._halving(partial(score, [requests[i] for i in by_size[size]], disable_tqdm=True))
            for i, value in zip(by_size[size], found, strict=True):
                scores[i] = value
            self.batch_size_per_gpu = self.requested
        if self.batch_invariance is None:
            self._probe(requests, scores, score)
        return scores

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's, without its own progress bar."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's, halved where memory is short."""
        inner = super().generate_until
        self.expected = len(requests)
        answers: list[str] = self._halving(lambda: inner(requests, disable_tqdm=True))
        return answers

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As lm-eval's; a prompt that was cut from the left gets its BOS back."""
        tokens, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        cut = (mask[:, 0] == 1) & (tokens[:, 0] != self.bos)
        tokens[cut, 0] = self.bos
        self.truncated += int(cut.sum())
        return tokens, mask

    # ------------------------------------------------------------------------------------------ memory

    def _planned(self, lengths: Sequence[int]) -> list[int]:
        """Batch size for requests of these lengths: as asked, or the power of two whose logits fit.

        A batch holds its logits, their softcapped copy, and the fp32 log-softmax: over a vocabulary of 256,000 that is
        more than the model from a few thousand tokens on. Requests of one length get one size, so those that share a
        context stay together.
        """
        vocabulary = self.model.get_output_embeddings().out_features
        token_bytes = vocabulary * (3 * self.model.dtype.itemsize + 8)
        room = 0.8 * free_memory(self.device) / token_bytes
        fits = [max(1, int(room / min(length, self.max_length))) for length in lengths]
        return [self.requested if size >= self.requested else 1 << (size.bit_length() - 1) for size in fits]

    def _limit_batch(self, size: int) -> None:
        self.batch_size_per_gpu = max(1, min(size, self.batch_size_per_gpu))
        self.smallest_batch_size = min(self.smallest_batch_size, self.batch_size_per_gpu)

    def _probe(
        self, requests: Sequence[Request], scores: Sequence[tuple[float, bool]], score: Callable[..., Any]
    ) -> None:
        """Score a few requests again, alone, and keep the largest difference; warn where it is not rounding."""
        spread = range(0, len(requests), max(1, len(requests) // PROBES))[:PROBES]
        size, on_batch, self.on_batch = self.batch_size_per_gpu, self.on_batch, lambda requests: None
        self.batch_size_per_gpu = 1
        try:
            alone = [score([requests[i]], disable_tqdm=True)[0][0] for i in spread]
        finally:
            self.batch_size_per_gpu, self.on_batch = size, on_batch
        pairs = [(scores[i][0], value, len(requests[i][2])) for i, value in zip(spread, alone, strict=True)]
        self.batch_invariance = max(abs(together - value) for together, value, _ in pairs)
        # bfloat16 logits of up to 30 lie 1/8 apart: an error of that size a token, and like a random walk along them
        allowed = (1e-3 if self.model.dtype == torch.float32 else 0.25) * max(length for *_, length in pairs) ** 0.5
        if self.batch_invariance > allowed:
            logger.warning(
                "scores depend on the batch: up to %.3g nats (rounding explains %.3g)", self.batch_invariance, allowed
            )


def _rows_hash(row: Sequence[int]) -> int:
    """Of the tokens of a row, whether it is padded, with zeros on the right, or not."""
    length = len(row)
    while length and row[length - 1] == 0:
        length -= 1
    return hash(tuple(row[:length]))


def free_memory(device: torch.device) -> int:
    """Bytes that a batch may take: what is free on the GPU, or half of what the machine has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 // 2
    return 1 << 30


def _out_of_memory(error: BaseException) -> bool:
    """CUDA has its own exception; the CPU's allocator raises a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
