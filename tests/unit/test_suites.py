"""The catalogue of cells, their costs, and the keys of measurements."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpc_ewc import records, suites
from hpc_ewc.config import EvaluateConfig
from hpc_ewc.errors import ArtefactError, ConfigError
from hpc_ewc.rundir import StageDir
from hpc_ewc.suites import Cell, cell_key, data_hash, expand_suites
from tests.conftest import use_hub_cache

SEVEN = ["arc_easy", "belebele", "gsm8k", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande"]


def names(config: EvaluateConfig, language: str = "lt", heldout: tuple[str, ...] = ()) -> list[str]:
    return [cell.name for cell in expand_suites(config, language, heldout)]


def test_default_suites_are_fourteen_benchmarks_and_fluency() -> None:
    cells = names(EvaluateConfig(), heldout=("en",))
    assert cells[:14] == [f"{task}.{language}" for language in ("en", "lt") for task in SEVEN]
    assert cells[14:] == ["ppl_truthfulqa.en", "ppl_truthfulqa.lt", "ppl_heldout.lt", "ppl_heldout.en"]


def test_the_papers_table_is_in_the_catalogue() -> None:
    by_name = {cell.name: cell for cell in expand_suites(EvaluateConfig(), "lt")}
    assert {name: by_name[f"{name}.lt"].chance for name in SEVEN} == {
        "arc_easy": 0.25,
        "belebele": 0.25,
        "gsm8k": 0.0,
        "hellaswag": 0.25,
        "mmlu": 0.25,
        "truthfulqa_mc2": None,
        "winogrande": 0.5,
    }
    assert (by_name["gsm8k.en"].metric, by_name["gsm8k.en"].filter) == ("exact_match", "strict-match")
    assert by_name["hellaswag.en"].metric == "acc"
    assert not by_name["ppl_heldout.lt"].higher_is_better
    assert [by_name[name].shots for name in ("gsm8k.lt", "mmlu.en", "arc_easy.en")] == [5, 5, 0]


def test_suites_tasks_and_cells_can_be_named_without_duplicates() -> None:
    config = EvaluateConfig(suites=("mmlu.lt", "winogrande", "lt", "mmlu.lt.native"))
    assert names(config)[:3] == ["mmlu.lt", "winogrande.en", "winogrande.lt"]
    assert len(names(config)) == len(set(names(config))) == 9
    assert names(config)[-1] == "mmlu.lt.native"


def test_native_prompts_are_variants_of_worded_tasks() -> None:
    assert names(EvaluateConfig(suites=("en", "lt"), prompts=("native",))) == [
        *(f"{task}.en" for task in SEVEN),
        *(f"{task}.lt" if task in ("hellaswag", "winogrande") else f"{task}.lt.native" for task in SEVEN),
    ]
    both = names(EvaluateConfig(suites=("lt",), prompts=("core", "native")))
    assert len(both) == 7 + 5


def test_heldout_text_of_another_language_is_a_cell() -> None:
    config = EvaluateConfig(suites=("ppl_heldout", "ppl_heldout.en"), heldout={"en": "news.jsonl"})
    assert names(config, "de") == ["ppl_heldout.de", "ppl_heldout.en"]
    with pytest.raises(ConfigError, match="unknown cell 'ppl_heldout.fr'"):
        names(EvaluateConfig(suites=("ppl_heldout.fr",)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arc_eazy.lt", "unknown suite, cell or task 'arc_eazy.lt'; did you mean 'arc_easy.lt'?"),
        ("fluancy", "unknown suite, cell or task 'fluancy'; did you mean 'fluency'?"),
        ("arc_easy.ltt", "unknown cell 'arc_easy.ltt'; did you mean 'arc_easy.lt'?"),
        ("hellaswag.lt.native", "unknown cell 'hellaswag.lt.native'; did you mean 'hellaswag.lt'?"),
        ("qqqqqqqq", "unknown suite, cell or task 'qqqqqqqq'; known: en, lt, fluency, arc_easy"),
    ],
)
def test_an_unknown_name_gets_the_closest_suggestion(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_suites(EvaluateConfig(suites=(name,)), "lt")
    assert message in str(caught.value)


def test_empty_suites_are_an_error() -> None:
    with pytest.raises(ConfigError, match="evaluate.suites is empty; known: en, lt, fluency"):
        expand_suites(EvaluateConfig(suites=()), "lt")


def test_any_lm_eval_task_can_be_named_with_or_without_a_language(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: my_quiz\noutput_type: multiple_choice\n")
    config = EvaluateConfig(suites=("xcopa_et.et", "lambada_openai", "my_quiz.lt"), include=(str(tmp_path),))
    assert names(config) == ["xcopa_et.et", "lambada_openai.und", "my_quiz.lt"]
    assert all(cell.kind == "lm-eval" and cell.shots is None for cell in expand_suites(config, "lt"))
    mine = Cell("my_quiz", "lt")
    before = data_hash(mine, questions=None, heldout=None, include=config.include)
    (tmp_path / "mine.yaml").write_text("task: my_quiz\noutput_type: generate_until\n")
    assert data_hash(mine, questions=None, heldout=None, include=config.include) != before


@pytest.mark.parametrize(
    ("backend", "arguments", "message"),
    [
        (
            "hf",
            "load_in_8bit=True",
            "evaluate.backend_args = 'load_in_8bit=True': backend 'hf' takes none: its settings are model.dtype",
        ),
        ("vllm", "enforce_eager", "evaluate.backend_args: 'enforce_eager' is not name=value, such as gpu_memory_util"),
        ("vllm", "a=1,=2", "evaluate.backend_args: '=2' is not name=value"),
        ("vllm", "seed=", "evaluate.backend_args: 'seed=' is not name=value"),
        ("vllm", "swap_space=1,dtype=float16", "'dtype' cannot be set here: model.dtype sets it; remove it"),
        ("vllm", "max_model_len=64", "'max_model_len' cannot be set here: evaluate.max_length sets it; remove it"),
        (
            "vllm",
            "add_bos_token=False",
            "'add_bos_token' cannot be set here: every request begins with one BOS; remove it",
        ),
        ("vllm", "pretrained=x", "'pretrained' cannot be set here: it is the checkpoint; remove it"),
    ],
)
def test_arguments_a_backend_does_not_support_are_refused(backend: str, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_suites(EvaluateConfig(backend=backend, backend_args=arguments), "lt")
    assert message in str(caught.value)
    expand_suites(EvaluateConfig(backend="vllm", backend_args="swap_space=1,,enforce_eager=True"), "lt")


def key(cell: Cell | None = None, **changes: object) -> str:
    cell = cell or Cell("arc_easy", "lt")
    config = EvaluateConfig(**{name: changes.pop(name) for name in list(changes) if name in FIELDS})  # type: ignore[arg-type]
    given = {"checkpoint": "abc", "fraction": 1.0, "data": "d", "dtype": "float32", **changes}
    return cell_key(cell, config=config, **given)  # type: ignore[arg-type]


FIELDS = {field.name for field in dataclasses.fields(EvaluateConfig)}


def test_a_measurements_key_contains_all_that_affects_it() -> None:
    assert key() == "61c184b2dd2b"  # stable across processes and versions: records of old runs stay current
    changed = [
        key(checkpoint="other"),
        key(fraction=0.5),
        key(data="e"),
        key(dtype="bfloat16"),
        key(limit=10),
        key(seed=1),
        key(backend="vllm"),
        key(max_length=128),
        key(Cell("arc_easy", "lt", shots=1)),
        key(Cell("arc_easy", "lt", variant="native")),
        key(Cell("belebele", "lt")),
    ]
    assert len({key(), *changed}) == 1 + len(changed)


def test_settings_without_effect_do_not_change_a_measurements_key() -> None:
    assert key(fraction=1) == key()
    assert key(batch_size=3, suites=("lt",), base=False) == key()
    assert key(Cell("arc_easy", "lt", suite="mine", cost=9.0)) == key()


def test_replaced_data_changes_the_key(tmp_path: Path) -> None:
    file = tmp_path / "lt" / "arc_easy" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"a": 1}\n')
    cell = Cell("arc_easy", "lt")
    before = data_hash(cell, questions=tmp_path, heldout=None)
    assert data_hash(cell, questions=tmp_path, heldout=None) == before
    file.write_text('{"a": 2}\n')
    assert data_hash(cell, questions=tmp_path, heldout=None) != before
    heldout = Cell("ppl_heldout", "lt")
    assert data_hash(heldout, questions=tmp_path, heldout=file) != data_hash(heldout, questions=tmp_path, heldout=None)


def test_hub_data_is_identified_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub_cache(monkeypatch, tmp_path)
    cell = Cell("gsm8k", "lt")
    assert data_hash(cell, questions=None, heldout=None) == "neurotechnology/lt_gsm8k@unknown"
    ref = tmp_path / "datasets--neurotechnology--lt_gsm8k" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("c0ffee")
    assert data_hash(cell, questions=None, heldout=None) == "neurotechnology/lt_gsm8k@c0ffee"


def write_record(stage: StageDir, cell: str, *, samples: bool = True, **changes: object) -> None:
    record = {
        "schema": 1,
        "status": "ok",
        "retry": False,
        "cell_key": "k",
        "experiment": "e",
        "run": "r",
        "step": 7,
        "fraction": 1.0,
        "coordinates": {},
        "model_hash": "m",
        "base_hash": "b",
        "task": cell.split(".")[0],
        "language": "lt",
        "variant": "",
        "results": [],
        **changes,
    }
    records.write_json(stage.cell(7, cell), record)
    if samples:
        records.write_samples(stage.samples(7, cell), [])


def test_cells_without_record_or_with_retryable_failure_are_missing(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    write_record(stage, "arc_easy.lt")
    write_record(stage, "mmlu.lt", status="failed", samples=False)
    write_record(stage, "gsm8k.lt", status="failed", retry=True, samples=False)
    write_record(stage, "winogrande.lt", samples=False)
    expected = [f"1.0:{cell}.lt" for cell in ("arc_easy", "mmlu", "gsm8k", "winogrande", "hellaswag")]
    assert suites.missing(stage, expected) == ["1.0:gsm8k.lt", "1.0:winogrande.lt", "1.0:hellaswag.lt"]
    assert set(suites.recorded(stage)) == {"1.0:arc_easy.lt", "1.0:mmlu.lt"}
    assert Cell("arc_easy", "lt").at(1.0) in suites.recorded(stage)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    write_record(stage, "arc_easy.lt")
    path = stage.cell(7, "arc_easy.lt")
    path.write_text(path.read_text()[:40])
    with pytest.raises(ArtefactError, match=r"arc_easy\.lt\.json: corrupt or not written"):
        suites.missing(stage, ["1.0:arc_easy.lt"])


def test_several_held_out_texts_of_a_language_are_separate_cells() -> None:
    config = EvaluateConfig(suites=("fluency",), heldout={"lt.news": "n.jsonl", "en.news": "m.jsonl"})
    texts = [cell.name for cell in expand_suites(config, "lt") if cell.task == "ppl_heldout"]
    assert texts == ["ppl_heldout.lt", "ppl_heldout.lt.news", "ppl_heldout.en.news"]
    one = expand_suites(dataclasses.replace(config, suites=("ppl_heldout.lt.news",)), "lt")
    assert [(cell.language, cell.variant, cell.text) for cell in one] == [("lt", "news", "lt.news")]
    every = expand_suites(dataclasses.replace(config, suites=("ppl_heldout",)), "lt")
    assert [cell.name for cell in every] == texts
    with pytest.raises(ConfigError, match=r"evaluate\.heldout\.'../x': allowed are a language or language\.name"):
        expand_suites(EvaluateConfig(heldout={"../x": "n.jsonl"}), "lt")
