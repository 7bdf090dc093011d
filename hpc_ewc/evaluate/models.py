"""The models of an array element: the checkpoint, wrapped for lm-eval, and the judge; each is loaded when needed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hpc_ewc.config import Experiment
from hpc_ewc.errors import InputError
from hpc_ewc.evaluate.checkpoint import load_model, load_tokenizer
from hpc_ewc.evaluate.judge import Judge
from hpc_ewc.evaluate.scoring import Scorer


class Models:
    """Loads the checkpoint and the judge of an element, each at most once.

    Args:
        folder: the checkpoint's folder.
        judge_folder: the judge's folder; None: no cell needs one.
        config: the experiment, for its tables `model` and `evaluate`.
        on_batch: called before each batch with the requests in it; may raise StopRequested.
    """

    def __init__(
        self, folder: Path, judge_folder: Path | None, config: Experiment, on_batch: Callable[[int], None]
    ) -> None:
        self.folder = folder
        self.judge_folder = judge_folder
        self.model_config, self.config = config.model, config.evaluate
        self._limits = {"batch_size": self.config.batch_size, "max_length": self.config.max_length}
        self._on_batch = on_batch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer: Any = None
        self._model: Any = None
        self._scorers: dict[bool, Scorer] = {}
        self._judge: Judge | None = None

    def scorer(self, *, whole_texts: bool) -> Any:
        """Return the checkpoint, wrapped to score documents (`whole_texts`) or questions, with its counters reset."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder)
        if self.config.backend == "vllm":
            scorer = self._vllm()
            scorer.set_mode(whole_texts=whole_texts)
        else:
            scorer = self._transformers(whole_texts=whole_texts)
        scorer.reset()
        return scorer

    def judge(self) -> Judge:
        """Return the model that judges answers; it stays loaded beside the checkpoint."""
        assert self.judge_folder is not None, "there are judged cells only with a judge"
        if self._judge is None:
            limits, dtype = self._limits, self.model_config.dtype
            self._judge = Judge(self.judge_folder, dtype=dtype, device=self.device, on_batch=self._on_batch, **limits)
        return self._judge

    def _transformers(self, *, whole_texts: bool) -> Scorer:
        if self._model is None:
            self._model = load_model(
                self.folder,
                dtype=self.model_config.dtype,
                attention=self.model_config.attention,
                device=self.device,
                tokenizer=self._tokenizer,
            )
        if whole_texts not in self._scorers:
            self._scorers[whole_texts] = Scorer(
                self._model, self._tokenizer, whole_texts=whole_texts, on_batch=self._on_batch, **self._limits
            )
        return self._scorers[whole_texts]

    def _vllm(self) -> Any:
        if self._model is None:
            if find_spec("vllm") is None:
                raise InputError(
                    "evaluate.backend = 'vllm': vllm is not installed here; pip install 'hpc-ewc[vllm]', or set 'hf'"
                )
            from lm_eval.utils import simple_parse_args_string

            from hpc_ewc.evaluate.vllm import VllmScorer

            self._model = VllmScorer(
                bos=int(self._tokenizer.bos_token_id),
                batch_size=self.config.batch_size,
                pretrained=str(self.folder),
                dtype=self.model_config.dtype,
                max_model_len=self.config.max_length,
                seed=self.config.seed,
                **simple_parse_args_string(self.config.backend_args),
            )
        return self._model
