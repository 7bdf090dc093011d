"""The backend vllm, by its name and arguments: lm-eval's own class, around a stand-in for vLLM's engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpc_ewc import records
from hpc_ewc.evaluate import environment, models
from tests.end_to_end.evaluation import prepare, primary, run

CELLS = ("arc_easy.en", "gsm8k.en", "ppl_heldout.en")


@dataclass
class Sampling:
    """vLLM's SamplingParams."""

    max_tokens: int
    prompt_logprobs: int | None = None
    temperature: float = 0.0
    stop: Sequence[str] = ()
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


class Engine:
    """vLLM's LLM: log p of each token of a prompt, by transformers; what is generated does not matter."""

    made: dict[str, Any]
    """Arguments of the last one."""
    prompts: list[list[int]]

    def __init__(self, **arguments: Any) -> None:
        Engine.made, Engine.prompts = arguments, []
        self.longest = arguments["max_model_len"]
        self.llm_engine = SimpleNamespace(model_config=None)
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"], attn_implementation="eager").eval()

    @torch.no_grad()
    def generate(self, prompts: list[Any], sampling_params: list[Sampling], **_: Any) -> list[Any]:
        found = []
        for prompt, asked in zip(prompts, sampling_params, strict=True):
            ids = prompt.prompt_token_ids
            assert len(ids) + asked.max_tokens <= self.longest, "vLLM refuses what does not fit"
            Engine.prompts.append(ids)
            logs: list[Any] = [None]
            if asked.prompt_logprobs:
                rows = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
                logs += [{token: float(row[token])} for token, row in zip(ids[1:], rows, strict=False)]
            found.append(SimpleNamespace(prompt_logprobs=logs, outputs=[SimpleNamespace(text=" #### 1")]))
        return found


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """A package vllm, as far as lm-eval asks for it."""

    def module(name: str, **facts: Any) -> None:
        made = ModuleType(name)
        vars(made).update(facts)
        monkeypatch.setitem(sys.modules, name, made)

    def tokens_prompt(prompt_token_ids: list[int]) -> Any:
        return SimpleNamespace(prompt_token_ids=prompt_token_ids)

    def get_tokenizer(folder: str, **_: Any) -> Any:
        return AutoTokenizer.from_pretrained(folder)

    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.0" if name == "vllm" else version(name))
    monkeypatch.setattr(environment, "version", importlib.metadata.version)
    find_spec = importlib.util.find_spec
    for where in (importlib.util, environment, models):  # it is installed, as far as anybody asks
        monkeypatch.setattr(where, "find_spec", lambda name, *more: name if name == "vllm" else find_spec(name, *more))
    module("vllm", LLM=Engine, SamplingParams=Sampling, TokensPrompt=tokens_prompt)
    module("vllm.lora")
    module("vllm.lora.request", LoRARequest=None)
    module("vllm.renderers")
    module("vllm.renderers.hf", resolve_chat_template=lambda *args, **kwargs: None)
    module("vllm.tokenizers", get_tokenizer=get_tokenizer)
    for name in ("lm_eval.models.vllm_causallms", "hpc_ewc.evaluate.vllm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Engine


def test_vllm_gets_its_arguments_and_bos_once_and_gives_the_same_numbers(
    miniature: Path, tmp_path: Path, vllm: type[Engine]
) -> None:
    world = miniature
    settings: dict[str, Any] = {"limit": 4, "max_length": 64, "shots": {"gsm8k": 2}}
    plain = prepare(tmp_path / "hf", world, CELLS, **settings)
    run(plain)
    arguments = "gpu_memory_utilization=0.5,enforce_eager=True"
    stage = prepare(tmp_path / "vllm", world, CELLS, backend="vllm", backend_args=arguments, **settings)
    run(stage)

    expected = {"model": str(world / "model"), "dtype": "float32", "max_model_len": 64, "seed": 1234}
    expected |= {"gpu_memory_utilization": 0.5, "enforce_eager": True}
    assert {name: vllm.made[name] for name in expected} == expected
    assert len(vllm.prompts) > 4 * 4 and max(map(len, vllm.prompts)) == 63  # texts were cut, and prompts
    assert all(ids[0] == 2 and ids.count(2) == 1 for ids in vllm.prompts)
    record = records.read_checked(stage.cell(0, "gsm8k.en"), "record")
    assert (record["backend"], record["backend_args"], record["attention"]) == ("vllm", arguments, "vllm")
    assert record["truncated"] == records.read_json(plain.cell(0, "gsm8k.en"))["truncated"] > 0
    assert record["versions"]["vllm"] == "0.10.0"
    assert primary(stage, 0, "arc_easy.en")["value"] == primary(plain, 0, "arc_easy.en")["value"]
    pairs = zip(
        records.read_samples(stage.samples(0, "arc_easy.en")),
        records.read_samples(plain.samples(0, "arc_easy.en")),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours["loglikelihoods"] == pytest.approx(theirs["loglikelihoods"], abs=1e-3)
    same = records.read_json(plain.cell(0, "arc_easy.en"))["cell_key"]
    assert records.read_json(stage.cell(0, "arc_easy.en"))["cell_key"] != same
