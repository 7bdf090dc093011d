"""The backend vLLM: lm-eval's own class, with BOS exactly once. Tests run it on a fake engine.

One engine scores questions and documents; the mode decides whether its tokenizer adds BOS. A job stops between cells
only. vLLM plans its own batches, so there is no batch-invariance probe, and the recorded batch size is the configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.vllm_causallms import VLLM

from hpc_ewc.evaluate.bos import BosMixin, Request


class VllmScorer(BosMixin, VLLM):  # type: ignore[misc]
    """A checkpoint in vLLM, wrapped for lm-eval.

    Args:
        bos: the BOS token, which the tokenizer adds (checkpoint.load_tokenizer).
        batch_size: requests that lm-eval passes to vLLM together.
        arguments: further arguments of lm-eval's class and of vLLM's engine.
    """

    attention = "vllm"
    batch_invariance: float | None = None

    def __init__(self, *, bos: int, batch_size: int, **arguments: Any) -> None:
        super().__init__(batch_size=batch_size, add_bos_token=True, **arguments)
        self.bos = bos
        self.truncated = 0
        self.smallest_batch_size = batch_size

    def set_mode(self, *, whole_texts: bool) -> None:
        """Prepare for documents, before which lm-eval puts BOS itself, or for questions."""
        self.add_bos_token = not whole_texts

    def reset(self) -> None:
        """Reset the counter, for another cell."""
        self.truncated = 0

    @property
    def window(self) -> int:
        """Return one token less than the context: vLLM generates one even if it only scores."""
        return int(self.max_length) - 1

    def _model_generate(self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None) -> Any:
        """Return lm-eval's output; a prompt that was cut from the left gets its BOS back."""
        if generate:
            cut = [tokens[0] != self.bos for tokens in requests]
            self.truncated += sum(cut)
            pairs = zip(requests, cut, strict=True)
            requests = [[self.bos, *tokens[1:]] if was_cut else tokens for tokens, was_cut in pairs]
        return super()._model_generate(requests, generate, sampling_params)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        fitting = [self.truncate(request) for request in requests]
        scores: list[tuple[float, bool]] = VLLM._loglikelihood_tokens(self, fitting, disable_tqdm=True)
        return scores
