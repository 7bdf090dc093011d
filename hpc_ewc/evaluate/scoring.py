"""lm-eval's HFLM around one loaded model: BOS exactly once, a stop between batches, batches that fit the memory.

lm-eval computes every score. Added around its calls: requests that are cut to fit the context keep their BOS, a batch
that does not fit the memory is halved, each batch is counted, and the model computes no logits for positions that are
not scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import psutil
import torch
from lm_eval.models.huggingface import HFLM

from hpc_ewc.evaluate.bos import BosMixin, Request

logger = logging.getLogger(__name__)

PROBES = 8
"""Number of requests that the batch-invariance probe scores once more, each alone."""


class StopRequested(Exception):  # noqa: N818 - no error, like StopIteration
    """The job has to stop, between two batches; the current cell is dropped."""


class Scorer(BosMixin, HFLM):  # type: ignore[misc]
    """lm-eval's HFLM around a loaded model, for questions or for documents.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: adds BOS (checkpoint.load_tokenizer).
        batch_size: maximum number of requests per batch; halved if memory runs out.
        max_length: maximum number of tokens of context; the model's own limit wins.
        whole_texts: whether it scores documents. HFLM puts BOS before a document itself, so its tokenizer must not
            (`<bos><bos>` costs 20–49 nats per document); before a question the tokenizer puts it.
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
        """First position whose logits are needed, by `_row_hash` of the tokens that the model reads."""
        self.can_skip_logits = "logits_to_keep" in signature(model.forward).parameters
        """Whether the model can leave out the logits of the positions before."""
        self.on_batch = on_batch
        self.requested = batch_size
        self.reset()
        self.batch_invariance: float | None = None
        """Largest difference, in nats, between a request scored in its batch and alone."""

    def reset(self) -> None:
        """Reset the counters and the batch size, for another cell."""
        self.batch_size_per_gpu = self.requested
        self.smallest_batch_size = self.requested
        """Size of the smallest batch since the last reset."""
        self.truncated = 0
        self.expected = 0
        """Requests that the model will get; those that share a context count as one."""

    @property
    def window(self) -> int:
        """Return one token more than the model reads, since the last one is only scored."""
        return int(self.max_length) + 1

    @property
    def attention(self) -> str:
        """Return the attention kernel that transformers chose."""
        return str(self.model.config._attn_implementation)

    # ------------------------------------------------------------------------------------------ batches

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        """Return lm-eval's logits, without those before the first that a request of this batch needs.

        Only the answer's tokens of a question are scored, and over a vocabulary of 256,000 the head costs more than
        all layers of a small model. lm-eval counts positions from the end, so it accepts fewer.
        """
        self.on_batch(len(inps))
        first = min(self.first_scored.get(_row_hash(row), 0) for row in inps.tolist()) if self.can_skip_logits else 0
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

    def _with_halving(self, run: Callable[[], Any]) -> Any:
        """Return `run()`, repeated with half the batch size each time that memory runs out.

        Requests are sorted by length, longest first: a batch that does not fit fails at once, with no work lost.
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
        requests = [self.truncate(request) for request in requests]
        score = super()._loglikelihood_tokens
        self.first_scored = {}
        for _, context, scored in requests:  # several may share a row, scored from different positions
            read, first = _row_hash([*context, *scored[:-1]]), len(context) - 1
            self.first_scored[read] = min(first, self.first_scored.get(read, first))
        self.expected = len(self.first_scored)
        by_size: dict[int, list[int]] = {}
        for i, size in enumerate(self._batch_sizes([len(context) + len(scored) for _, context, scored in requests])):
            by_size.setdefault(size, []).append(i)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for size in sorted(by_size):
            self._limit_batch(size)
            found = self._with_halving(partial(score, [requests[i] for i in by_size[size]], disable_tqdm=True))
            for i, value in zip(by_size[size], found, strict=True):
                scores[i] = value
            self.batch_size_per_gpu = self.requested
        if self.batch_invariance is None:
            self._probe(requests, scores, score)
        return scores

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return lm-eval's answers; the batch size is halved if memory runs out."""
        inner = super().generate_until
        self.expected = len(requests)
        answers: list[str] = self._with_halving(lambda: inner(requests, disable_tqdm=True))
        return answers

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lm-eval's tokens and mask; a prompt that was cut from the left gets its BOS back."""
        tokens, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        cut = (mask[:, 0] == 1) & (tokens[:, 0] != self.bos)
        tokens[cut, 0] = self.bos
        self.truncated += int(cut.sum())
        return tokens, mask

    # ------------------------------------------------------------------------------------------ memory

    def _batch_sizes(self, lengths: Sequence[int]) -> list[int]:
        """Return the batch size for requests of these lengths: as configured, or the power of two whose logits fit.

        A batch needs its logits, their softcapped copy, and the fp32 log-softmax: over a vocabulary of 256,000 these
        exceed the model from a few thousand tokens on. Requests of one length get one size, so those that share a
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
        """Set `batch_invariance` by scoring a few requests again, alone; warn if the difference exceeds rounding."""
        chosen = range(0, len(requests), max(1, len(requests) // PROBES))[:PROBES]
        size, on_batch, self.on_batch = self.batch_size_per_gpu, self.on_batch, lambda requests: None
        self.batch_size_per_gpu = 1
        try:
            alone = [score([requests[i]], disable_tqdm=True)[0][0] for i in chosen]
        finally:
            self.batch_size_per_gpu, self.on_batch = size, on_batch
        pairs = [(scores[i][0], value, len(requests[i][2])) for i, value in zip(chosen, alone, strict=True)]
        self.batch_invariance = max(abs(together - value) for together, value, _ in pairs)
        # bfloat16 logits of up to 30 lie 1/8 apart: errors of that size per token, which add up like a random walk
        allowed = (1e-3 if self.model.dtype == torch.float32 else 0.25) * max(length for *_, length in pairs) ** 0.5
        if self.batch_invariance > allowed:
            logger.warning(
                "scores depend on the batch: up to %.3g nats (rounding explains %.3g)", self.batch_invariance, allowed
            )


def _row_hash(row: Sequence[int]) -> int:
    """Return a hash of a row's tokens, without the zeros that pad it on the right."""
    length = len(row)
    while length and row[length - 1] == 0:
        length -= 1
    return hash(tuple(row[:length]))


def free_memory(device: torch.device) -> int:
    """Return the bytes that a batch may use: all that are free on the GPU, or half of the available RAM."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // 2


def _out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: CUDA has its own exception, the CPU's allocator raises a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
