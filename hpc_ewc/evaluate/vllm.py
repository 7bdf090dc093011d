"""vLLM as the backend: lm-eval's own class, with BOS as everywhere here. Tests run it on a stand-in for the engine.

One engine serves questions and whole texts; which it is decides whether its tokenizer adds BOS. A stop is heeded
between cells; vLLM plans its own batches, so there is no probe, and the batch size says only what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.models.vllm_causallms import VLLM

from hpc_ewc.evaluate.bos import OneBos, Request


class VllmScorer(OneBos, VLLM):  # type: ignore[misc]
    """A checkpoint in vLLM.

    Args:
        folder: of the checkpoint.
        dtype: of weights and compute.
        tokenizer: adds BOS (checkpoint.load_tokenizer).
        batch_size: requests lm-eval hands over at once.
        max_length: tokens of context.
        seed: of sampling, where a task samples.
        arguments: further ones of lm-eval's class and of vLLM's engine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        tokenizer: Any,
        batch_size: int,
        max_length: int,
        seed: int,
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__(
            pretrained=str(folder),
            dtype=dtype,
            batch_size=batch_size,
            max_model_len=max_length,
            add_bos_token=True,
            seed=seed,
            **arguments,
        )
        self.bos = int(tokenizer.bos_token_id)
        self.truncated = 0
        self.batch_invariance: float | None = None
        self.smallest_batch_size = batch_size
        self.attention = "vllm"

    def asked(self, *, whole_texts: bool) -> VllmScorer:
        """This engine, for questions or for whole texts, before which lm-eval puts BOS itself."""
        self.add_bos_token = not whole_texts
        return self

    def begin(self) -> None:
        """Count anew, for another cell."""
        self.truncated = 0

    @property
    def window(self) -> int:
        """One token less than the context: vLLM generates one even where it only scores."""
        return int(self.max_length) - 1

    def _model_generate(self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None) -> Any:
        """As lm-eval's; a prompt that was cut from the left gets its BOS back."""
        if generate:
            cut = [tokens[0] != self.bos for tokens in requests]
            self.truncated += sum(cut)
            pairs = zip(requests, cut, strict=True)
            requests = [[self.bos, *tokens[1:]] if was_cut else tokens for tokens, was_cut in pairs]
        return super()._model_generate(requests, generate, sampling_params)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        fitted = [self.fitted(request) for request in requests]
        scores: list[tuple[float, bool]] = VLLM._loglikelihood_tokens(self, fitted, disable_tqdm=True)
        return scores
