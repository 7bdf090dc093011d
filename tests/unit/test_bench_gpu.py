"""benchmarks/gpu.py on a CPU: its search, failed runs, and its one code path on a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.distributed.ranks import run_ranks

BENCHMARKS = REPOSITORY / "benchmarks"
MODULES = ("gpu", "gpu_inside", "gpu_tables", "running", "engine", "environment", "models")
TINY = ["--device", "cpu", "--size", "tiny", "--layers", "1", "--length", "32", "--questions", "2x16"]
FIGURES = {
    "tokens_per_s", "tflops_per_s of a rank", "mfu", "step_s", "λ > 0 / λ = 0, whole step", "penalty alone / step",
}  # fmt: skip
HELD = {"weights", "gradients", "moments", "Fisher", "anchor"}
MEASURED = {*HELD, "gathered and activations, after the layers", "gathered, activations and loss, at the highest"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("gpu")
    for name in MODULES:
        sys.modules.pop(name, None)


def inside(rank: int, world_size: int, words: list[str], options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Run the work of gpu.py's own process in one that has imported torch already."""
    sys.path[:0] = [str(BENCHMARKS)]
    from gpu_inside import run_inside  # type: ignore[import-not-found]

    from hpc_ewc.train import process_group

    result = Path(options["result"])
    os.environ["BENCHMARK_RESULT"] = str(result)
    process_group.join = lambda timeout_s: torch.device("cpu")  # type: ignore[assignment]
    leave = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda: None  # type: ignore[assignment]
    status = 0
    try:
        run_inside(Namespace(device="cpu", size="tiny", inside=words))
    except SystemExit as ended:
        status = int(str(ended.code))
    torch.distributed.destroy_process_group = leave
    return status, json.loads(result.read_text())


@pytest.fixture
def in_forks(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fork instead of starting processes that would spend seconds importing torch."""

    def attempt(arguments: Namespace, *words: str, **_: Any) -> Any:
        status, found = run_ranks(1, inside, list(words), {"result": tmp_path / "result.json"})
        return gpu.Ended(status, found)

    monkeypatch.setattr(gpu, "attempt", attempt)


def run(gpu: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "gpu.py"), *options])
    gpu.main()


def test_configurations_that_run_out_of_memory_become_rows_and_the_others_are_measured(
    gpu: Any, in_forks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    axes = ["--rows", "1", "100000", "--activation-checkpointing", "none", "--loss", "chunked", "--memory-gb", "1"]
    run(gpu, monkeypatch, *TINY, *axes, "--large-step", "64", "--out", str(out))
    found = json.loads(out.read_text())
    rows = found["training, best first"]
    assert [row["outcome"] for row in rows] == ["ok", "ok", "out of memory"]
    assert {row["settings"]["microbatches"] for row in rows[:2]} == {1, 2}, "the best is repeated with a large step"
    assert rows[2]["settings"]["rows"] == 100000
    assert "can't allocate memory" in rows[2]["error"]
    assert found["left out for want of time"] == 0
    for row in rows[:2]:
        assert set(row) >= FIGURES
        assert row["tokens_per_s"] > 0
        memory = row["memory_gb of a rank"]
        assert set(memory) == {*MEASURED, "highest"}
        for name in HELD:
            assert memory[name]["measured"] == pytest.approx(memory[name]["predicted"], rel=1e-3), name
        assert memory["highest"]["measured"] > sum(memory[name]["measured"] for name in HELD)
    assert rows[0]["tokens_per_s"] >= rows[1]["tokens_per_s"], "best first"
    (fisher,) = found["Fisher, best first"]
    assert fisher["examples_per_s"] > 0
    assert {"benchmark", "device", "size", "ranks", "layers", "searched", "environment"} <= set(found)
    printed = capsys.readouterr().out
    assert "out of memory" in printed
    assert "memory of a rank, the fastest of all" in printed


def test_without_a_gpu_the_script_reports_it_and_exits_0(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        run(gpu, monkeypatch)
    assert ended.value.code == 0
    assert capsys.readouterr().out == "gpu.py: skipped: --device cuda needs a GPU, and torch sees none here\n"


def test_no_measurement_starts_without_time_left(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "attempt", lambda *_, **__: pytest.fail("started"))
    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="no training was measured"):
        run(gpu, monkeypatch, *TINY, "--budget-s", "1", "--out", str(out))
    assert json.loads(out.read_text())["left out for want of time"] == 12


# ---------------------------------------------------------------------------------------------- the search


def climb(gpu: Any, speed_of: Any) -> tuple[list[Any], dict[str, int]]:
    """Return the configurations measured, in order, for given speeds (0: out of memory), and those left out."""
    axes = {axis: values for axis, (_, values) in gpu.AXES.items()}
    arguments, rows, order = Namespace(length=4096), [], []
    while True:
        setting, _ = gpu.next_training(axes, arguments, rows)
        if setting is None:
            return order, gpu.left_out(axes, arguments, rows)
        order.append(setting)
        speed = speed_of(setting)
        outcome = "ok" if speed else "out of memory"
        rows.append({"settings": vars(setting) | {}, "outcome": outcome, "tokens_per_s": speed})


def test_search_climbs_to_the_best_first_then_tries_every_configuration_once(gpu: Any) -> None:
    def speed_of(setting: Any) -> float:
        memory = setting.rows * {"none": 4, "selective": 2, "full": 1}[setting.activation_checkpointing]
        slower = {"none": 1.0, "selective": 0.97, "full": 0.8}[setting.activation_checkpointing]
        fast = slower * setting.rows**0.1 * (1.3 if setting.compile else 1.0)
        fast *= {"chunked": 1.0, "liger": 1.02, "full": 0.9}[setting.loss]
        return 0.0 if memory > 16 else fast * (0.5 if setting.attention == "eager" else 1.0)

    order, left = climb(gpu, speed_of)
    assert len(order) == len(set(order))
    # 16 rows without recomputation in 2 · 3 · 3 variants of the other axes, since 8 rows ran out of memory
    assert left == {"left out for want of time": 0, "left out, larger than what had too little memory": 18}
    assert len(order) == 18 * 15 - 18
    best = max(order, key=speed_of)
    assert (best.rows, best.activation_checkpointing, best.loss, best.compile) == (8, "selective", "liger", True)
    assert order.index(best) < 25


def test_the_smallest_of_each_kind_is_tried_even_if_nothing_fits(gpu: Any) -> None:
    order, left = climb(gpu, lambda setting: 0.0)
    assert {setting.rows for setting in order} == {1}
    assert len(order) == 18 * 3
    assert left["left out, larger than what had too little memory"] == 18 * 12


# ---------------------------------------------------------------------------------------------- processes

SCRIPT = """
import json, os, sys, time
word = sys.argv[sys.argv.index("--inside") + 1]
if word == "hang":
    time.sleep(60)
if word == "raise":
    raise RuntimeError("the kernel is broken")
open(os.environ["BENCHMARK_RESULT"], "w").write(json.dumps({"outcome": "ok", "word": word}))
"""


@pytest.mark.parametrize(
    ("word", "limit_s", "expected"),
    [
        ("fine", 30.0, {"outcome": "ok", "word": "fine"}),
        ("raise", 30.0, {"outcome": "failed"}),
        ("hang", 0.5, {"outcome": "out of time"}),
    ],
)
def test_a_failed_or_hung_process_becomes_a_row(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, limit_s: float, expected: dict[str, str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(script)])
    ended = gpu.attempt(Namespace(device="cpu", size="tiny"), word, limit_s=limit_s)
    row = gpu.outcome(ended)
    assert row.items() >= expected.items()
    if word == "raise":
        assert row["error"].startswith("status 1: ")
        assert "RuntimeError: the kernel is broken" in row["error"]
