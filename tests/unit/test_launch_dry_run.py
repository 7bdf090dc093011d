"""Dry run of an experiment whose model, corpus and questions are not on this machine: complete, gaps named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records
from hpc_ewc.cli import submit
from hpc_ewc.config import load_experiment
from hpc_ewc.errors import ConfigError, InputError
from hpc_ewc.launch.forecast.shapes import KNOWN
from hpc_ewc.launch.profile.reading import build_profile
from hpc_ewc.rundir import RunDir
from hpc_ewc.sweep import expand
from tests.conftest import REPOSITORY, use_hub_cache

PAPER = REPOSITORY / "sweeps" / "paper.toml"
ONE_NODE = 'executor = "slurm"\ngpu = "H100"\n'
TWO_NODES = ONE_NODE + "".join(f"[resources.{s}]\nnodes = 2\ngpus_per_node = 4\n" for s in ("fisher", "train"))
SMALL = """
[model]
path = "{model}"
[data]
source = "files"
files = ["{folder}/corpus.jsonl"]
{data}
[fisher]
source = "files"
files = ["{folder}/corpus.jsonl"]
[train]
{train}
[evaluate]
suites = ["arc_easy.en"]
[grid]
ewc.strength = [0, 1.0]
"""


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub_cache(monkeypatch, tmp_path / "hub")
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


def look(sweep: Path, profile: str, capsys: pytest.CaptureFixture[str], config: Path | None = None) -> str:
    path = Path("p.toml")
    path.write_text(profile)
    assert submit.run(submit.Settings(sweep=sweep, profile=path, dry_run=True, config=config)) == 0
    return capsys.readouterr().out


def small(model: str = "org/unknown", data: str = "", train: str = "") -> Path:
    here = Path.cwd()
    (here / "corpus.jsonl").write_text('{"text": "Laba diena."}\n' * 100)
    path = here / "small.toml"
    path.write_text(SMALL.format(folder=here, model=model, data=data, train=train))
    return path


def numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d,]*\.?\d*", line)]


def row(out: str, label: str) -> list[float]:
    (line,) = [line for line in out.splitlines() if line.startswith(f"  {label}")]
    return numbers(line.removeprefix(f"  {label}"))


def test_dry_run_shows_the_papers_experiment_without_its_gated_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = look(PAPER, ONE_NODE, capsys)
    assert [len(re.findall(rf"^{stage} .* missing", out, re.M)) for stage in ("train", "evaluate")] == [6, 7]
    assert f"not in the cache {tmp_path}/hub: " in out
    assert "; gated benchmarks neurotechnology/lt_arc, neurotechnology/lt_mmlu; " in out
    for name in ("google/gemma-2-2b-it", "uonlp/CulturaX", "cais/mmlu", "neurotechnology/lt_arc"):
        assert name in out.split("forecast")[0]
    assert f"fetch them with: hpc-ewc prefetch {PAPER}" in out
    assert "model google/gemma-2-2b-it: 2.61 billion parameters, by its published shape" in out
    share = KNOWN["google/gemma-2-2b"].parameters / 8 / 1e9
    ranks, weights, moments, gradients, held, *_, total, room = row(out, "train, λ > 0 × 5")
    assert (ranks, room) == (8, 80)
    assert [weights, moments, gradients, held] == [round(k * share, 1) for k in (4, 8, 4, 6)]
    assert total < room
    assert row(out, "train, λ = 0")[4] == round(2 * share, 1), "only the anchor, without a Fisher"
    disk = next(line for line in out.splitlines() if "by artefact" in line)
    assert "tokens 7.2; fisher 15.7 (26.1 while it runs); train, λ = 0 15.7 (99.3 while it runs)" in disk
    assert "by time limits" in out and "396 TFLOP/s in training (40% of the data sheet, H100)" in out
    hours = next(line for line in out.splitlines() if line.startswith("  by stage: "))
    total_hours = numbers(next(line for line in out.splitlines() if line.startswith("GPU-hours: about")))[0]
    fisher, free, times, each, runs, evaluation = numbers(hours.replace("λ = 0", "").replace("λ > 0", ""))
    assert (times, runs) == (5, 7)
    assert free == each
    assert total_hours == pytest.approx(fisher + 6 * each + 7 * evaluation, rel=0.03)
    assert out.count("=====") >= 5, "a script of each stage"
    assert not (tmp_path / "runs").exists()


def test_eight_gpus_on_one_or_two_nodes_give_the_same_runs(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = look(PAPER, ONE_NODE, capsys), look(PAPER, TWO_NODES, capsys)
    runs = [re.findall(r"^train +(\S+)", out, re.M) for out in (one, two)]
    assert runs[0] == runs[1] and len(runs[0]) == 6
    assert re.search(r"^train .* 64 cpus 8 gpus$", one, re.M)
    assert re.search(r"^train .* 2 nodes 64 cpus 4 gpus$", two, re.M)
    for out, nodes, gpus in ((one, 1, 8), (two, 2, 4)):
        script = out.split("=====")[3]
        assert f"#SBATCH --nodes={nodes}\n" in script
        assert f"#SBATCH --gpus-per-node={gpus}\n" in script
        assert row(out, "train, λ > 0 × 5")[0] == 8
    forecasts = [out[out.index("forecast") : out.index("runs: ")] for out in (one, two)]
    assert forecasts[0] == forecasts[1], "only the number of ranks matters"


@pytest.mark.parametrize("name", ["lumi", "leonardo", "juwels-booster"])
@pytest.mark.parametrize("sweep", ["paper", "paper-exact"])
def test_dry_run_shows_both_experiments_for_each_site(
    name: str, sweep: str, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = (REPOSITORY / "slurm" / f"{name}.toml").read_text(encoding="utf-8")
    out = look(REPOSITORY / "sweeps" / f"{sweep}.toml", profile, capsys)
    assert "?" not in out.split("=====")[0]
    assert "which is assumed: the profile names none" not in out


def test_submit_refuses_missing_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.toml").write_text(ONE_NODE)
    with pytest.raises(InputError, match=r"model\.path = 'google/gemma-2-2b-it': not in the cache .*hpc-ewc prefetch"):
        submit.run(submit.Settings(sweep=PAPER, profile=Path("p.toml"), yes=True))
    with pytest.raises(ConfigError, match="--config x.json: only for --dry-run; a submit reads the model itself"):
        submit.run(submit.Settings(sweep=PAPER, profile=Path("p.toml"), yes=True, config=Path("x.json")))


def test_local_submit_refuses_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not in the cache"):
        submit.run(submit.Settings(sweep=small(), yes=True))
    assert not (tmp_path / "runs").exists()


def test_a_model_of_unknown_shape_needs_its_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = small()
    out = look(sweep, "", capsys)
    assert "not in the cache" in out
    assert "model org/unknown: unknown shape; give its config.json with --config; known: google/gemma-2-27b" in out
    assert "disk: about ? MB" in out or "disk: about ? GB" in out
    assert "a rank" not in out
    config = tmp_path / "config.json"
    sizes = {"vocab_size": 100, "hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 5}
    config.write_text(json.dumps({"model_type": "gemma2", **sizes, **heads}))
    out = look(sweep, "", capsys, config)
    assert f"parameters, by {config}" in out
    assert "MB of a rank" in out
    assert "GPU-hours" not in out, "no stage requests a GPU"


def test_a_partly_downloaded_model_has_its_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    commit, repository = "c0ffee00" * 5, tmp_path / "hub" / "models--org--unknown"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "refs", repository / "trees"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shape: dict[str, Any] = {name: getattr(KNOWN["google/gemma-3-270m"], name) for name in ("vocab_size", "head_dim")}
    shape |= {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 1, "model_type": "gemma3_text"}
    (snapshot / "config.json").write_text(json.dumps(shape))
    files = {name: {"size": 5, "blob_id": "x"} for name in ("config.json", "model.safetensors")}
    (repository / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    out = look(small(), "", capsys)
    assert "model org/unknown" in out.split("forecast")[0]
    assert "model org/unknown: 0.268 billion parameters, by its config.json" in out


def hours(out: str) -> float:
    return numbers(next(line for line in out.splitlines() if line.startswith("  by stage: ")).split("λ > 0 ")[1])[0]


GPU = 'gpu = "A100"\n[resources.train]\ngpus_per_node = 2\n'


def test_time_estimate_uses_expected_counted_or_stepped_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    model = "google/gemma-3-270m"
    expected = hours(look(small(model, data="expected_tokens = 1_000_000_000"), GPU, capsys))
    assert hours(look(small(model, data="expected_tokens = 2_000_000_000"), GPU, capsys)) == pytest.approx(2 * expected)
    twice = look(small(model, data="expected_tokens = 1_000_000_000", train="epochs = 2.0"), GPU, capsys)
    assert hours(twice) == pytest.approx(2 * expected)
    per_step = 64 * 512
    steps = look(small(model, train=f"steps = {round(1e9 / per_step)}"), GPU, capsys)
    assert hours(steps) == pytest.approx(expected, rel=0.05)
    tokens = re.findall(r"^tokens +(\S+)", steps, re.M)[0]
    folder = RunDir(Path.cwd() / "runs" / "small").tokens(tokens)
    folder.path.mkdir(parents=True)
    done = {"schema": records.SCHEMA, "key": tokens, "job_id": "1", "restart": 0, "finished_at": 0.0, "outputs": {}}
    records.write_json(folder.done, done | {"summary": {"samples": 3_906_250, "sequence_length": 512}})
    assert hours(look(small(model), GPU, capsys)) == pytest.approx(2 * expected, rel=0.05)


def test_token_count_is_estimated_from_file_size(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = small("google/gemma-3-270m")
    size = (Path.cwd() / "corpus.jsonl").stat().st_size * 0.1 / 3 * 4
    disk = next(line for line in look(sweep, "", capsys).splitlines() if "by artefact" in line)
    assert float(disk.split("tokens ")[1].split(";")[0]) * 1e9 == pytest.approx(size, rel=0.05)


def test_a_missing_corpus_has_no_time_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    text = small("google/gemma-3-270m").read_text()
    sweep = Path("hub.toml")
    sweep.write_text(text.replace('source = "files"', 'source = "uonlp/CulturaX"', 1).replace("files = [", "#", 1))
    out = look(sweep, GPU, capsys)
    assert "GPU-hours: about ?, by FLOP; up to " in out
    assert "unknown: the tokens of the corpus, or the model's shape; set data.expected_tokens or give --config" in out


def test_a_training_that_does_not_fit_in_memory_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    out = look(small("google/gemma-2-9b-it"), GPU, capsys)
    assert "more than a GPU has: train, λ = 0, train, λ > 0; a smaller local_batch_size" in out
    assert "more than a GPU has" not in look(small("google/gemma-2-9b-it"), "gpu_memory_gb = 900.0\n" + GPU, capsys)


def test_the_profiles_gpu_tflops_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = small("google/gemma-3-270m", train="steps = 100000")
    slow, fast = (look(sweep, f"gpu_tflops = {rate}\n{GPU}", capsys) for rate in (100.0, 200.0))
    assert hours(slow) == pytest.approx(2 * hours(fast), rel=0.05)
    assert "200 TFLOP/s in training (gpu_tflops of the profile, A100)" in fast
    with pytest.raises(ConfigError, match="profile.gpu = 'V100'"):
        build_profile({"gpu": "V100"}, "p.toml")


def test_expected_tokens_change_no_artefact_name() -> None:
    (first, second) = (load_experiment(small(data=data)) for data in ("expected_tokens = 5", "expected_tokens = 6"))
    assert first != second
    from hpc_ewc.sweep import Identities, train_key

    same = Identities("a", "b", "c", "d")
    assert len({train_key(expand(experiment)[0].experiment, same) for experiment in (first, second)}) == 1
