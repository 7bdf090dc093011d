"""Put BOS before each request exactly once, also where a request is longer than the context; for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Request = tuple[Any, list[int], list[int]]
"""(lm-eval's cache key, or None; tokens of the context; tokens to score)."""


class BosMixin:
    """A mixin for lm-eval's language models; list it before them.

    Attributes:
        bos: the BOS token, after which every text is scored.
        truncated: number of requests that were too long and lost their beginning (documents are split instead).
    """

    bos: int
    truncated: int
    tok_encode: Callable[..., list[int]]
    _loglikelihood_tokens: Callable[..., list[tuple[float, bool]]]

    @property
    def window(self) -> int:
        """Return the maximum number of tokens in a request, context and scored ones together."""
        raise NotImplementedError

    def truncate(self, request: Request) -> Request:
        """Return a request that fits the window; one that is too long loses the tokens after BOS.

        lm-eval alone would cut off BOS with them.
        """
        key, context, scored = request
        if len(context) + len(scored) <= self.window or context[0] != self.bos:
            return request
        self.truncated += 1
        scored = scored[: self.window - 1]
        room = self.window - len(scored) - 1
        return key, [self.bos, *context[len(context) - room :]] if room else [self.bos], scored

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p(document | BOS) of each document; a long one is split to fit, with BOS before each part.

        lm-eval's own windows after the first have no BOS, which raises Gemma's perplexity from 33 to 2083.
        """
        size = self.window - 1
        documents = [self.tok_encode(request.args[0]) for request in requests]
        parts = [[tokens[i : i + size] for i in range(0, len(tokens), size)] for tokens in documents]
        windows: list[Request] = [(None, [self.bos], part) for each in parts for part in each]
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=True))
        return [sum(next(scores)[0] for _ in each) for each in parts]
