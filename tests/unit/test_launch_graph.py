"""The job graph: shared stages, dependencies and priorities."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc.artefacts.completeness import Completeness, check_artefact, missing_cells, write_stage_files
from hpc_ewc.config import load_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.plan.build_graph import build_graph
from hpc_ewc.launch.plan.graph import Graph, Node, elements, gpu_hours, priorities
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.rundir import RunDir, StageDir
from hpc_ewc.stage import Stage
from hpc_ewc.sweep import expand
from hpc_ewc.worker import evaluate as evaluate_worker
from hpc_ewc.worker import tokens as tokens_worker
from tests.conftest import use_hub_cache
from tests.unit.launch_world import write_experiment


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")


def graph_of(sweep: Path, root: Path | None = None) -> Graph:
    experiment = load_experiment(sweep)
    resolver = Resolver(str(sweep))
    points = [(point, resolver.resolve(point.experiment)) for point in expand(experiment)]
    return build_graph(RunDir(root or sweep.parent / "runs" / "small"), points, experiment, Profile(), str(sweep))


def only(graph: Graph, stage: str) -> Node:
    (node,) = graph.of(stage)
    return node


def test_a_sweep_over_lambda_shares_tokens_and_fisher(tmp_path: Path) -> None:
    graph = graph_of(write_experiment(tmp_path, [0, 1e2, 1e6]))
    assert [len(graph.of(s)) for s in ("tokens", "fisher", "train", "evaluate", "report")] == [1, 1, 3, 4, 1]
    tokens, fisher = only(graph, "tokens"), only(graph, "fisher")
    for train in graph.of("train"):
        free = train.experiment.ewc.strength == 0
        assert train.depends == ((tokens.id,) if free else (tokens.id, fisher.id)), "λ = 0 needs no Fisher"
        assert ("fisher" in train.inputs) != free
        assert train.inputs["tokens"] == str(tokens.folder.path)
        evaluation = graph.nodes[f"evaluate/{train.run}"]
        assert evaluation.depends == (train.id,)
        assert evaluation.inputs["train"] == str(train.folder.path)
        assert evaluation.expected == ["1.0:arc_easy.en", "1.0:ppl_heldout.lt"]
    base = graph.nodes["evaluate/base"]
    assert base.depends == (tokens.id,)
    assert base.inputs["model"] == str(tmp_path / "model")
    assert base.expected == ["0.0:arc_easy.en", "0.0:ppl_heldout.lt"]
    assert set(only(graph, "report").depends) == {node.id for node in graph.of("evaluate")}


def test_without_a_penalty_no_fisher_is_computed(tmp_path: Path) -> None:
    assert graph_of(write_experiment(tmp_path, [0])).of("fisher") == []


def test_a_grid_over_corpora_has_separate_tokens_and_bases(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path, [0])
    sweep.write_text(sweep.read_text().replace("ewc.strength = [0]", "data.fraction = [0.5, 1.0]"))
    graph = graph_of(sweep)
    assert len(graph.of("tokens")) == 2
    bases = [node.run for node in graph.of("evaluate") if node.run.startswith("base")]
    assert len(set(bases)) == 2, "each tokenisation has its own held-out documents"


def test_another_lambda_changes_no_other_name(tmp_path: Path) -> None:
    few = graph_of(write_experiment(tmp_path, [0, 1e6]))
    more = graph_of(write_experiment(tmp_path, [0, 1e3, 1e6]))
    assert set(few.nodes) < set(more.nodes)
    added = set(more.nodes) - set(few.nodes)
    assert {name.split("/")[0] for name in added} == {"train", "evaluate"}
    assert all("strength=1000" in name for name in added)


def test_an_edited_corpus_changes_its_key(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path)
    before = graph_of(sweep)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("Laba", "Gera"))  # the file size stays the same
    after = graph_of(sweep)
    assert only(before, "tokens").key != only(after, "tokens").key
    assert only(before, "fisher").key == only(after, "fisher").key
    assert not {n.run for n in before.of("train")} & {n.run for n in after.of("train")}


def test_resources_and_location_do_not_change_keys(tmp_path: Path) -> None:
    before = graph_of(write_experiment(tmp_path))
    more = "[resources.train]\nnodes = 2\ncpus_per_task = 7\n"
    after = graph_of(write_experiment(tmp_path, more=more), tmp_path / "elsewhere" / "small")
    assert list(before.nodes) == list(after.nodes)


def test_all_exports_or_only_the_last_are_evaluated(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path, [0])
    text = sweep.read_text().replace("[grid]", "[train]\nexport_at = [0.5, 1.0]\n[grid]")
    sweep.write_text(text)
    last = graph_of(sweep).of("evaluate")[-1]
    assert last.fractions == (1.0,)
    sweep.write_text(text.replace("[evaluate]", '[evaluate]\ncheckpoints = "all"'))
    every = next(node for node in graph_of(sweep).of("evaluate") if node.run != "base")
    assert every.expected == ["0.5:arc_easy.en", "0.5:ppl_heldout.lt", "1.0:arc_easy.en", "1.0:ppl_heldout.lt"]
    assert [element.arguments[1] for element in elements(every)] == ["0.5", "1.0"], "a job loads one checkpoint"
    text = text.replace("export_at = [0.5, 1.0]", "export_at = [0.2, 0.4, 0.6, 0.8, 1.0]")
    for asked, expected in (("every 2", (0.4, 0.8, 1.0)), ("every 9", (1.0,)), ("every 1", (0.2, 0.4, 0.6, 0.8, 1.0))):
        sweep.write_text(text.replace("[evaluate]", f'[evaluate]\ncheckpoints = "{asked}"'))
        assert next(node for node in graph_of(sweep).of("evaluate") if node.run != "base").fractions == expected
    sweep.write_text(text.replace("[evaluate]", '[evaluate]\ncheckpoints = "every 0"'))
    with pytest.raises(ConfigError, match=r"evaluate\.checkpoints = 'every 0': allowed are final, all, \"every 2\""):
        graph_of(sweep)


def test_elements_cover_exactly_the_missing_cells(tmp_path: Path) -> None:
    graph = graph_of(write_experiment(tmp_path, [0], elements=2))
    base = graph.nodes["evaluate/base"]
    both = elements(base)
    assert sorted(cell for element in both for cell in element.expected) == sorted(base.expected)
    assert len(both) == 2
    (one,) = elements(base, ["0.0:arc_easy.en"])
    assert one.arguments == ("--checkpoint", "0.0", "--cells", "arc_easy.en")


def test_an_element_has_the_name_its_worker_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise failed.json from a launcher survives the next attempt, which removes only its own."""
    named: list[str] = []

    def seen(folder: Path, element: str, kind: str) -> Stage:
        named.append(element)
        raise LookupError("seen")

    monkeypatch.setattr(evaluate_worker, "Stage", seen)
    monkeypatch.setattr(tokens_worker, "Stage", seen)
    graph = graph_of(write_experiment(tmp_path, elements=2, more="[resources.tokens]\nelements = 2\n"))
    base = elements(graph.nodes["evaluate/base"])
    for main, found in ((evaluate_worker.main, base), (tokens_worker.main, elements(only(graph, "tokens")))):
        for element in found:
            with pytest.raises(LookupError, match="seen"):
                main([str(tmp_path), *element.arguments])
    assert named == ["0.0-arc_easy.en", "0.0-ppl_heldout.lt", "0", "1"]
    assert named == [element.worker for element in (*base, *elements(only(graph, "tokens")))]


def test_token_parts_are_divided_among_elements(tmp_path: Path) -> None:
    graph = graph_of(write_experiment(tmp_path, [0], more="[resources.tokens]\nelements = 3\n"))
    parts = [element.arguments for element in elements(only(graph, "tokens"))]
    assert parts == [("--part", "0/3"), ("--part", "1/3"), ("--part", "2/3")]


def test_stages_that_unblock_most_work_have_priority(tmp_path: Path) -> None:
    graph = graph_of(write_experiment(tmp_path, [0, 1e2, 1e6]))
    weight = priorities(graph, graph.nodes)
    tokens, fisher = only(graph, "tokens").id, only(graph, "fisher").id
    train = graph.of("train")[0].id
    assert weight[tokens] > weight[fisher] > weight[train] > weight["evaluate/base"] > weight["report"] == 0
    assert weight[train] == 2
    assert priorities(graph, ["report"])[tokens] == 1, "finished stages do not count"


def test_gpu_hours_are_an_upper_bound(tmp_path: Path) -> None:
    more = "[resources.train]\nnodes = 2\ngpus_per_node = 4\ntime_min = 30\n"
    graph = graph_of(write_experiment(tmp_path, [0, 1], more=more))
    assert gpu_hours(graph, {node.id: 1 for node in graph.of("train")}) == pytest.approx(2 * 2 * 4 * 0.5)


def test_perplexity_without_held_out_text_is_refused(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path)
    sweep.write_text(sweep.read_text().replace("heldout_documents = 1", "heldout_documents = 0"))
    with pytest.raises(ConfigError, match=re.escape("ppl_heldout.lt has no text: data.heldout_documents = 0")):
        graph_of(sweep)


def test_a_benchmark_missing_from_the_users_folder_is_refused(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path)
    sweep.write_text(sweep.read_text().replace("[evaluate]", f'[evaluate]\nquestions = "{tmp_path}/rows"'))
    rows = tmp_path / "rows" / "en" / "mmlu" / "test" / "anatomy.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"arc_easy\.en: no rows in .*/rows/en/arc_easy; put them there, or name"):
        graph_of(sweep)
    there = tmp_path / "rows" / "en" / "arc_easy" / "test.jsonl"
    there.parent.mkdir()
    there.write_text("{}\n")
    before, base = (graph_of(sweep).nodes["evaluate/base"] for _ in range(2))
    assert before.inputs["questions"] == f"{tmp_path}/rows" and before.settings == base.settings
    there.write_text("{ }\n")
    assert graph_of(sweep).nodes["evaluate/base"].settings != before.settings, "changed rows are evaluated again"


def test_a_missing_folder_of_task_files_is_refused(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path)
    sweep.write_text(sweep.read_text().replace("[evaluate]", '[evaluate]\ninclude = ["no/such"]'))
    with pytest.raises(ConfigError, match=re.escape("evaluate.include = 'no/such': no such folder")):
        graph_of(sweep)


# ---------------------------------------------------------------------------------------------- on the disk


def test_stage_files_contain_the_workers_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = write_experiment(tmp_path)
    sweep.write_text(sweep.read_text().replace(f'"{tmp_path}/corpus.jsonl"', '"corpus.jsonl"'))
    graph = graph_of(sweep)
    for node in graph.nodes.values():
        if node.stage != "report":
            write_stage_files(node)
    train = graph.of("train")[1]
    monkeypatch.chdir("/")
    stage = Stage(train.folder.path)
    assert (stage.key, stage.run, stage.name) == (train.key, train.run, "train")
    assert stage.config == train.experiment, "loading the resolved configuration gives the same object"
    assert stage.config.data.files == (str(tmp_path / "corpus.jsonl"),)
    assert stage.config.ewc.strength == 1e6
    assert stage.inputs["fisher"] == str(only(graph, "fisher").folder.path)
    tokens = Stage(only(graph, "tokens").folder.path)
    assert tokens.config.data == train.experiment.data
    assert tokens.inputs["files"] == [str(tmp_path / "corpus.jsonl")]


def test_completeness_follows_done_json(tmp_path: Path) -> None:
    graph = graph_of(write_experiment(tmp_path))
    tokens = only(graph, "tokens")
    assert check_artefact(tokens) == Completeness(False)
    write_stage_files(tokens)
    stage = Stage(tokens.folder.path)
    stage.fail(ValueError("no corpus"))
    assert check_artefact(tokens) == Completeness(False, failed="ValueError: no corpus")
    stage.finish([])
    assert check_artefact(tokens).done


def write_record(node: Node, name: str, **changes: object) -> Path:
    fraction, _, cell_name = name.partition(":")
    cell = next(cell for cell in node.cells if cell.name == cell_name)
    from hpc_ewc.artefacts.completeness import _cell_key

    facts: dict[str, object] = dict.fromkeys(("experiment", "run", "model_hash", "base_hash"), "x")
    facts |= {"schema": 1, "status": "ok", "step": 7, "fraction": float(fraction), "coordinates": {}, "results": []}
    facts |= {"cell_key": _cell_key(node, cell, float(fraction)), "task": cell.task, "language": "", "variant": ""}
    path = node.folder.cell(7, cell_name)
    records.write_json(path, facts | changes)
    node.folder.samples(7, cell_name).write_bytes(b"")
    return path


def finish_evaluation(node: Node) -> list[Path]:
    write_stage_files(node)
    written = [write_record(node, name) for name in node.expected]
    outputs = [*written, *(path.with_name(f"{path.stem}.samples.jsonl.zst") for path in written)]
    Stage(node.folder.path).finish(outputs, weights={repr(fraction): "x" for fraction in node.fractions})
    return written


def test_only_a_deleted_record_is_missing(tmp_path: Path) -> None:
    base = graph_of(write_experiment(tmp_path)).nodes["evaluate/base"]
    written = finish_evaluation(base)
    assert check_artefact(base).done
    written[1].unlink()
    assert check_artefact(base) == Completeness(False, ("0.0:ppl_heldout.lt",))
    (one,) = elements(base, check_artefact(base).missing)
    assert one.arguments[-1] == "ppl_heldout.lt"


def test_records_of_other_weights_count_as_missing(tmp_path: Path) -> None:
    graph = graph_of(write_experiment(tmp_path))
    node = next(node for node in graph.of("evaluate") if node.run != "base")
    finish_evaluation(node)
    assert check_artefact(node).done, "an export removed to save space does not matter"
    facts = StageDir(Path(node.inputs["train"])).export(7) / "hpc_ewc.json"
    records.write_json(facts, {"fraction": 1.0, "model_hash": "x"})
    assert check_artefact(node).done
    records.write_json(facts, {"fraction": 1.0, "model_hash": "y"})
    assert check_artefact(node) == Completeness(False, tuple(node.expected))


def test_changed_settings_repeat_the_evaluation(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path)
    base = graph_of(sweep).nodes["evaluate/base"]
    finish_evaluation(base)
    sweep.write_text(sweep.read_text().replace("[evaluate]", "[evaluate]\nlimit = 3"))
    limited = graph_of(sweep).nodes["evaluate/base"]
    assert check_artefact(limited).missing == tuple(limited.expected)
    write_stage_files(limited)  # the result stays the same once the folder has its files
    assert check_artefact(limited).missing == tuple(limited.expected)


def test_an_added_suite_evaluates_only_new_cells(tmp_path: Path) -> None:
    sweep = write_experiment(tmp_path)
    base = graph_of(sweep).nodes["evaluate/base"]
    finish_evaluation(base)
    sweep.write_text(sweep.read_text().replace('["arc_easy.en"', '["winogrande.en", "arc_easy.en"'))
    wider = graph_of(sweep).nodes["evaluate/base"]
    assert check_artefact(wider).missing == ("0.0:winogrande.en",)
    assert wider.key == base.key


def test_a_truncated_record_is_named_and_evaluated_again(tmp_path: Path) -> None:
    base = graph_of(write_experiment(tmp_path)).nodes["evaluate/base"]
    written = finish_evaluation(base)
    written[0].write_text('{"schema": 1, "sta')
    found = check_artefact(base)
    assert not found.done
    assert str(written[0]) in found.note
    assert "0.0:arc_easy.en" in found.missing


def test_a_retryable_failure_record_is_evaluated_again(tmp_path: Path) -> None:
    base = graph_of(write_experiment(tmp_path)).nodes["evaluate/base"]
    write_stage_files(base)
    write_record(base, "0.0:arc_easy.en", status="failed", retry=True)
    write_record(base, "0.0:ppl_heldout.lt", status="failed")
    assert missing_cells(base) == ("0.0:arc_easy.en",)
