"""The dry run reports trainings over their time limit: the number of restarts, or that the chain is too short."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpc_ewc.cli import submit
from hpc_ewc.launch.forecast.lines import describe_excess
from hpc_ewc.launch.profile.keys import SlurmConfig
from tests.conftest import use_hub_cache

EXPERIMENT = """
[model]
path = "google/gemma-2-2b-it"
[data]
source = "uonlp/CulturaX"
expected_tokens = 360_000_000
[fisher]
max_examples = 100
[evaluate]
suites = ["arc_easy.en"]
[grid]
ewc.strength = [0, 1.0, 2.0]
"""
TWO_GPUS = 'gpu = "H100"\ngpu_tflops = 400.0\n[resources.train]\ngpus_per_node = 2\n'


@pytest.mark.parametrize(
    ("hours", "links", "expected"),
    [
        (23.9, None, None),
        (math.nan, None, None),
        (24.0, None, "train runs 24 h, a job has 24 h (resources.train.time_min): Slurm starts it again once, from"),
        (71.9, None, "Slurm starts it again 3 times, from the last checkpoint each time"),
        (71.8, 4, "train runs 72 h, a job has 24 h (resources.train.time_min): 3 of the 4 jobs of its chain"),
        (95.8, 4, "4 of the 4 jobs of its chain"),
        (95.9, 4, "does not fit its chain of 4 jobs, 96 h: slurm.successors = 4 or a longer time_min, more GPUs; or"),
        (2400.0, 4, "slurm.successors = 100 or a longer"),
    ],
)
def test_exceeded_time_limits_are_reported_with_the_number_of_restarts(
    hours: float, links: int | None, expected: str | None
) -> None:
    line = describe_excess("train", "train", hours, 24 * 60, slurm_of(links))
    assert line is None if expected is None else expected in str(line)


def test_short_limits_are_in_minutes_less_the_time_to_save() -> None:
    slurm = SlurmConfig(signal_delay_s=300)
    assert describe_excess("fisher", "fisher", 5 / 60, 10, slurm) is None
    assert "fisher runs 9 min, a job has 10 min (resources.fisher.time_min): Slurm starts it again once" in str(
        describe_excess("fisher", "fisher", 9 / 60, 10, slurm)
    )


def slurm_of(links: int | None) -> SlurmConfig:
    """Return a configuration with requeued jobs, or with chains of `links` jobs."""
    return SlurmConfig() if links is None else SlurmConfig(continuation="chain", successors=links - 1)


def test_chain_length_is_the_job_plus_its_successors() -> None:
    line = describe_excess("train", "train", 2.5, 60, SlurmConfig(continuation="chain", successors=2))
    assert str(line).endswith("3 of the 3 jobs of its chain")
    assert "starts it again" in str(describe_excess("train", "train", 2.5, 60, SlurmConfig()))


def look(profile: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of a dry run about time limits."""
    Path("x.toml").write_text(EXPERIMENT)
    Path("p.toml").write_text(profile)
    assert submit.run(submit.Settings(sweep=Path("x.toml"), profile=Path("p.toml"), dry_run=True)) == 0
    return [line for line in capsys.readouterr().out.splitlines() if "time limit, at" in line]


def test_dry_run_warns_about_each_training_over_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    # 3.6e8 tokens · 16.1 GFLOP at 2 · 400 TFLOP/s: 2 hours
    slurm = 'executor = "slurm"\n' + TWO_GPUS
    assert look(slurm + "time_min = 300\n", capsys) == []
    requeued = look(slurm + "time_min = 60\n", capsys)
    assert [line.split(": ")[1].split(" runs")[0] for line in requeued] == ["train, λ = 0", "train, λ > 0 × 2"]
    assert all("Slurm starts it again 2 times" in line for line in requeued)
    chained = look(slurm + 'time_min = 60\n[slurm]\ncontinuation = "chain"\nsuccessors = 1\n', capsys)
    assert all("does not fit its chain of 2 jobs" in line and "slurm.successors = 2" in line for line in chained)
    assert len(chained) == 2
    assert look(TWO_GPUS + "time_min = 60\n", capsys) == [], "a local job has no limit"
