"""BOS exactly once, also where a request is longer than the context: shared by every backend of lm-eval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Request = tuple[Any, list[int], list[int]]
"""(what was asked, or None; tokens of the context; tokens that are scored)."""


class OneBos:
    """Mixed into a language model of lm-eval, before it.

    Attributes:
        bos: the token that every text is scored after.
        truncated: requests that were too long and lost their beginning (documents are cut into windows instead).
    """

    bos: int
    truncated: int
    cache_hook: Any
    tok_encode: Callable[..., list[int]]
    _loglikelihood_tokens: Callable[..., list[tuple[float, bool]]]

    @property
    def window(self) -> int:
        """Tokens of a request, context and scored ones, at most."""
        raise NotImplementedError

    def fitted(self, request: Request) -> Request:
        """A request that is too long loses the tokens after BOS; lm-eval alone would cut BOS off with them."""
        asked, context, scored = request
        if len(context) + len(scored) <= self.window or context[0] != self.bos:
            return request
        self.truncated += 1
        scored = scored[: self.window - 1]
        room = self.window - len(scored) - 1
        return asked, [self.bos, *context[len(context) - room :]] if room else [self.bos], scored

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log p of each document after BOS. One longer than the context is cut, with a BOS before each part.

        lm-eval's own windows after the first have no BOS, on which Gemma's perplexity rises from 33 to 2083.
        """
        size = self.window - 1
        windows: list[Request] = []
        counts: list[int] = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            parts = [tokens[i : i + size] for i in range(0, len(tokens), size)]
            windows += [(None, [self.bos], part) for part in parts]
            counts.append(len(parts))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=True))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals
