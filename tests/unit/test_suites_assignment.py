"""The cost of cells, and the distance of their assignment to jobs from the optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc import suites
from hpc_ewc.config import EvaluateConfig
from hpc_ewc.errors import ConfigError
from hpc_ewc.suites import Cell, assign, costed, expand_suites


def makespan(bundles: Sequence[Sequence[Cell]], cost: Callable[[Cell], float]) -> float:
    return max(sum(map(cost, bundle)) for bundle in bundles)


@given(costs=st.lists(st.integers(0, 50), min_size=1, max_size=9), n=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_assignment_keeps_every_cell_and_is_near_the_optimum(costs: list[int], n: int) -> None:
    cells = [Cell(f"task{place}", "en", cost=float(cost)) for place, cost in enumerate(costs)]
    bundles = assign(cells, n)
    assert len(bundles) == min(n, len(cells)) and all(bundles)
    assert sorted(cell.name for bundle in bundles for cell in bundle) == [cell.name for cell in cells]
    assert assign(cells, n) == bundles
    best = best_makespan(costs, len(bundles))
    assert makespan(bundles, lambda cell: cell.cost) <= (4 / 3 - 1 / (3 * len(bundles))) * best + 1e-9  # Graham 1969


def best_makespan(costs: Sequence[int], n: int) -> int:
    """Return the shortest makespan, found by trying all assignments."""
    sums = {(0,) * n}
    for cost in costs:
        sums = {tuple(sorted((*s[:i], s[i] + cost, *s[i + 1 :]))) for s in sums for i in range(n)}
    return min(map(max, sums))


def test_zero_elements_are_refused() -> None:
    with pytest.raises(ConfigError, match="elements = 0: must be at least 1"):
        assign([Cell("mmlu", "en")], 0)


def test_default_cells_are_assigned_by_cost() -> None:
    config = EvaluateConfig()
    cells = costed(expand_suites(config, "lt"), config, questions=None, heldout={})
    assert cells == expand_suites(config, "lt")
    assert [cell.cost for cell in cells] == pytest.approx([cell.cost for cell in expand_suites(config, "lt")])
    total = sum(cell.cost for cell in cells)
    for n in (2, 3, 4):
        assert makespan(assign(cells, n), lambda cell: cell.cost) <= 1.1 * total / n
    dearest = max(cells, key=lambda cell: cell.cost)
    assert dearest.name == "mmlu.lt"
    assert makespan(assign(cells, 4), lambda cell: cell.cost) == dearest.cost, "a fifth element shortens nothing"


MEASURED = {
    "arc_easy.en": (120, 29.4),
    "belebele.en": (30, 10.6),
    "hellaswag.en": (40, 32.3),
    "mmlu.en": (114, 26.7),
    "truthfulqa_mc2.en": (8, 14.9),
    "winogrande.en": (100, 11.3),
    "exams_lt.lt": (80, 35.3),
    "ppl_heldout.lt": (25849, 50.5),
    "ppl_heldout.en.news": (14882, 13.3),
    "ppl_heldout.lt.news": (16982, 22.3),
    "ppl_heldout.en.flores": (11520, 8.7),
    "ppl_heldout.lt.flores": (12614, 15.4),
}
"""Rows, or bytes of a text, and seconds of each cell of sweeps/gemma3-270m-lt.toml at λ = 1e3 (2 cores, 2026-11-21)."""


def test_two_elements_of_a_real_experiment_take_similar_time(tmp_path: Path) -> None:
    heldout = {}
    for name, (size, _) in MEASURED.items():
        task, language, *variant = name.split(".")
        if task == "ppl_heldout":
            heldout[".".join((language, *variant))] = path = tmp_path / f"{name}.jsonl"
            path.write_text("x" * (size - 8) + "\n" * 8)
        elif task in suites.TASKS:
            folder, scored = tmp_path / language / suites.TASKS[task].folder, suites.TASKS[task].splits[-1]
            path = folder / scored / "anatomy.jsonl" if task == "mmlu" else folder / f"{scored}.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text("{}\n" * size)
    (tmp_path / "exams.yaml").write_text("task: exams_lt\n")
    config = EvaluateConfig(
        suites=tuple(MEASURED), shots={}, include=(str(tmp_path),), heldout=dict.fromkeys(heldout, "")
    )
    cells = costed(expand_suites(config, "lt"), config, questions=tmp_path, heldout=heldout)
    total = sum(seconds for _, seconds in MEASURED.values())
    for n, bound in ((2, 1.2), (3, 1.25), (4, 1.35)):
        assert makespan(assign(cells, n), lambda cell: MEASURED[cell.name][1]) <= bound * total / n


def test_cell_cost_depends_on_its_settings(tmp_path: Path) -> None:
    def cost(name: str, questions: Path | None = None, **settings: Any) -> float:
        config = EvaluateConfig(suites=(name,), **settings)
        (cell,) = costed(expand_suites(config, "lt"), config, questions=questions, heldout={}, documents=500)
        return cell.cost

    assert cost("mmlu.en") == pytest.approx(10.0)
    assert cost("mmlu.en", shots={"mmlu": 0}) == pytest.approx(10.0 / 6)
    assert cost("mmlu.en", limit=10) == pytest.approx(10.0 * 570 / 14042), "ten rows of each subject"
    assert cost("arc_easy.lt", limit=10) == pytest.approx(0.75 * 10 / 2376)
    assert cost("gsm8k.en", max_gen_toks=64) == pytest.approx(5.0 * (0.26 + 0.74 / 4))
    assert cost("ppl_heldout.lt") == pytest.approx(0.75), "half of the documents that the catalogue counts"
    assert cost("lambada_openai.en") == 5.0, "the number of its rows is unknown"
    judge = {"judge": "x", "judge_tokens": 64}
    assert cost("judged_answers.en", **judge) == pytest.approx(1.0)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "Kas?"}\n' * 8)
    assert cost("judged_answers.lt", **judge, judge_questions={"lt": str(asked)}) == pytest.approx(1.5 * 8 / 817)
    assert cost("arc_easy.en", tmp_path) == pytest.approx(0.5), "the catalogue's row count if the rows do not exist yet"
