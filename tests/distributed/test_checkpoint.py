"""Checkpoints: read on other numbers of ranks, believed only when whole and ours, never half there."""

from __future__ import annotations

import ctypes
import io
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_ewc import records
from hpc_ewc.errors import StageError
from hpc_ewc.model.load import load_model
from hpc_ewc.model.mesh import build_mesh
from hpc_ewc.rundir import StageDir
from hpc_ewc.train.checkpoint import Checkpoints
from hpc_ewc.train.optimizer import build_optimizer, optimizer_state, set_step_count
from tests.distributed.ranks import RankError, run_ranks
from tests.distributed.tiny_gemma import full, shard_like
from tests.distributed.training_folder import KEY, build_model, build_stage, read_metrics

POSITION = {"tokens": 99, "loss": 1.5, "seconds": 2.0}
Full = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    build_model(folder)
    return folder


class Trained:
    """A sharded model and its optimizer after a few steps of noise, and the checkpoints of a folder."""

    def __init__(
        self, model: Path, folder: Path, *, replicate: int = 1, steps: int = 0, keep: int = 2, **more: Any
    ) -> None:
        from hpc_ewc.config import TrainConfig

        self.model = load_model(model, build_mesh("cpu", replicate), dtype="float32")
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = build_optimizer(self.parameters, TrainConfig(learning_rate=0.01))
        self.checkpoints = Checkpoints(StageDir(folder), KEY, "job.0", keep, more.get("keep_every"))
        for step in range(steps):
            self.make_step(step)

    def make_step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters.values():
            noise = torch.randn(parameter.shape, generator=generator)  # the same on any number of ranks
            parameter.grad = shard_like(noise, parameter)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return {"model": weights, "optimizer": optimizer_state(self.optimizer, self.parameters)}

    def whole(self) -> Full:
        """Every tensor of the state, whole, by a flat name. Every rank calls it."""
        state = self.state()
        tensors = {f"model.{name}": t for name, t in state["model"].items()}
        for moment, values in state["optimizer"].items():
            tensors |= {f"{moment}.{name}": t for name, t in values.items()}
        return {name: full(t).clone() for name, t in tensors.items()}

    def save(self, step: int) -> None:
        self.checkpoints.start(self.state(), step, **POSITION)
        self.checkpoints.finish()

    def load(self) -> tuple[dict[str, Any] | None, str]:
        """The position, and what was said on stderr."""
        said, sys.stderr = sys.stderr, io.StringIO()
        try:
            position = self.checkpoints.load_newest(self.state())
            return position, sys.stderr.getvalue()
        finally:
            sys.stderr = said


def equal(a: Full, b: Full) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------- other ranks


def save_on_four(rank: int, world_size: int, model: Path, folder: Path) -> tuple[Full, Full, tuple[Any, Full, Full]]:
    trained = Trained(model, folder, steps=3)
    trained.save(3)
    written = trained.whole()
    trained.make_step(3)
    return written, trained.whole(), load_and_go_on(model, folder, replicate=2)


def load_and_go_on(model: Path, folder: Path, replicate: int = 1) -> tuple[Any, Full, Full]:
    trained = Trained(model, folder, replicate=replicate)
    position, said = trained.load()
    assert said == ""
    set_step_count(trained.optimizer, 3)
    loaded = trained.whole()
    trained.make_step(3)
    return position, loaded, trained.whole()


def load_and_save_on_one(rank: int, world_size: int, model: Path, folder: Path, other: Path) -> tuple[Any, Full, Full]:
    trained = Trained(model, folder)
    trained.load()
    trained.checkpoints = Checkpoints(StageDir(other), KEY, "job.0", 2, None)
    trained.save(3)
    return load_and_go_on(model, folder)


def load_on_three(rank: int, world_size: int, model: Path, folder: Path) -> tuple[Any, Full, Full]:
    return load_and_go_on(model, folder)


@pytest.mark.slow
def test_a_checkpoint_reads_bit_for_bit_on_other_ranks_and_goes_on_alike(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    written, after, on_replicas = run_ranks(4, save_on_four, model, first)
    on_one = run_ranks(1, load_and_save_on_one, model, first, second)
    on_three = run_ranks(3, load_on_three, model, second)
    assert any(name.startswith("exp_avg_sq.") for name in written)
    for way, (position, loaded, gone_on) in {"4 to 2x2": on_replicas, "4 to 1": on_one, "1 to 3": on_three}.items():
        assert position == {"step": 3, "parts": ["model", "optimizer"], **POSITION}, way
        assert equal(written, loaded), way
        for name, tensor in after.items():  # AdamW rounds by where a shard ends: vectors, then single elements
            torch.testing.assert_close(gone_on[name], tensor, rtol=1e-5, atol=1e-7, msg=f"{way}: {name}")


# ---------------------------------------------------------------------------------------------- whole or not


def all_of_two_ranks(rank: int, world_size: int, model: Path, base: Path) -> None:
    """Every check that two ranks can make, one after another."""
    for check in (
        the_copy_is_of_the_moment_of_start,
        the_newest_and_every_kth_are_kept,
        a_damaged_one_is_passed_over_loudly,
        what_a_killed_save_left_is_cleaned_away,
        a_file_too_large_for_the_disk_leaves_the_last_good_one,
        a_folder_that_cannot_be_made_is_said_by_every_rank,
        a_checkpoint_that_others_could_have_written_is_refused,
    ):
        check(rank, model, base / check.__name__)


def test_a_checkpoint_counts_only_when_it_is_whole_and_ours(model: Path, tmp_path: Path) -> None:
    run_ranks(2, all_of_two_ranks, model, tmp_path)


def the_copy_is_of_the_moment_of_start(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1)
    before = trained.whole()
    trained.checkpoints.start(trained.state(), 1, **POSITION)
    for step in range(5):  # training goes on while the files are written
        trained.make_step(10 + step)
    assert not equal(before, trained.whole())
    trained.checkpoints.finish()
    trained.load()
    assert equal(before, trained.whole())


def the_newest_and_every_kth_are_kept(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1, keep=2, keep_every=4)
    for step in range(1, 11):
        trained.save(step)
    barrier()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"{s:08}" for s in (4, 8, 9, 10)]
    done = records.read_json(folder / "checkpoints" / "00000010" / "done.json")
    assert set(done["outputs"]) == {".metadata", "__0_0.distcp", "__1_0.distcp"}


def a_damaged_one_is_passed_over_loudly(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1, keep=9)
    good = trained.whole()
    for step in range(1, 6):
        trained.save(step)
        if step == 1:
            trained.make_step(1)
    barrier()
    places = {step: folder / "checkpoints" / f"{step:08}" for step in range(1, 6)}
    if rank == 0:
        flip_a_bit(places[5] / "__1_0.distcp")
        (places[4] / "__0_0.distcp").write_bytes((places[4] / "__0_0.distcp").read_bytes()[:-100])
        (places[3] / "done.json").write_text('{"schema": 1, "ke')
        flip_a_bit(places[2] / ".metadata")
    barrier()
    position, said = trained.load()
    assert position is not None
    assert position["step"] == 1
    assert equal(trained.whole(), good)
    if rank == 0:
        assert said.count("WARNING: ") == 4
        assert "00000005: checkpoint is damaged (__1_0.distcp: sha256 is not what done.json says); reading" in said
        for step, why in {4: "bytes", 3: "corrupt or not written", 2: ".metadata: sha256"}.items():
            assert f"{step:08}: checkpoint is damaged (" in said
            assert why in said
        flip_a_bit(places[1] / "__0_0.distcp")
    barrier()
    position, said = trained.load()
    assert position is None
    trained.save(6)  # and it goes on from the beginning: a new one can be written beside the ruins
    position, _ = trained.load()
    assert position is not None
    assert position["step"] == 6


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def what_a_killed_save_left_is_cleaned_away(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1)
    trained.save(1)
    barrier()
    if rank == 0:
        shutil.copytree(folder / "checkpoints" / "00000001", folder / "checkpoints" / ".00000002.job.0")
    barrier()
    position, said = trained.load()
    barrier()
    assert position is not None
    assert (position["step"], said) == (1, "")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["00000001"]


def a_file_too_large_for_the_disk_leaves_the_last_good_one(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1)
    trained.save(1)
    good = trained.whole()
    trained.make_step(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:  # one node's quota, as it were; the other could write
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    with pytest.raises(
        StageError, match=r"checkpoint of step 2 could not be written to .*: a write was cut short"
    ) as raised:
        trained.save(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the last checkpoint is intact" in str(raised.value)
    position, _ = trained.load()
    assert position is not None
    assert position["step"] == 1
    assert equal(trained.whole(), good)
    barrier()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["00000001"]


def a_folder_that_cannot_be_made_is_said_by_every_rank(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1)
    if rank == 0:
        folder.mkdir(parents=True)
        (folder / "checkpoints").write_text("in the way")
    barrier()
    with pytest.raises(StageError, match=r"checkpoint of step 1 could not be written to .*: .*File exists"):
        trained.save(1)


def a_checkpoint_that_others_could_have_written_is_refused(rank: int, model: Path, folder: Path) -> None:
    trained = Trained(model, folder, steps=1)
    trained.save(1)
    barrier()
    place = folder / "checkpoints" / "00000001"
    assert place.stat().st_mode & 0o777 == 0o700
    barrier()
    if rank == 0:
        place.chmod(0o777)
    barrier()
    with pytest.raises(StageError, match=r"00000001: belongs to user \d+ with mode 777; a checkpoint is read only"):
        trained.load()
    barrier()


def barrier() -> None:
    torch.distributed.barrier()


# ---------------------------------------------------------------------------------------------- a real small disk


def mount_disk(disk: Path, size: str) -> None:
    """A tmpfs at `disk`, or a skip."""
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("this root may not mount")


def unmount(disk: Path) -> None:
    ctypes.CDLL(None).umount2(str(disk).encode(), 2)


def train_on_a_full_disk(rank: int, world_size: int, folder: Path) -> None:
    from tests.distributed.training_folder import run_training

    run_training(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_run_whose_disk_fills_up_fails_with_a_reason_and_keeps_its_last_good_checkpoint(
    model: Path, tmp_path: Path
) -> None:
    from tests.distributed.training_folder import build_tokens

    tokens = build_tokens(tmp_path / "tokens", model)
    disk = tmp_path / "disk"
    mount_disk(disk, "900k")
    try:
        build_stage(disk / "run", model, tokens, keep_checkpoints=99, keep_every=1)
        with pytest.raises(RankError, match="could not be (written|exported).*(cut short|No space left on device)"):
            run_ranks(2, train_on_a_full_disk, disk / "run")
        whole = sorted((disk / "run" / "checkpoints").glob("[0-9]*/done.json"))
        assert whole
        assert read_metrics(disk / "run")
        step = int(whole[-1].parent.name)
        position, _ = run_ranks(1, load_position, model, disk / "run")
        assert position["step"] == step
    finally:
        unmount(disk)


def train_until_read_only(rank: int, world_size: int, folder: Path, disk: Path) -> None:
    """Once a first checkpoint is whole nothing can be written any more, as after a lost permission."""
    from hpc_ewc.train.trainer import Trainer as Loop
    from tests.distributed.training_folder import run_training

    make_step = Loop.step
    read_only = False

    def step(self: Any, batch: Any, rate: float) -> tuple[float, float]:
        nonlocal read_only
        result = make_step(self, batch, rate)
        # checkpoints are sealed between the steps: waiting for one in here would be for ever
        whole = torch.tensor(len(list((folder / "checkpoints").glob("[0-9]*/done.json"))))
        torch.distributed.broadcast(whole, src=0)
        if whole and not read_only:
            read_only = True
            until = time.monotonic() + 60
            # busy while a checkpoint is being written
            while (
                rank == 0 and subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode
            ):
                assert time.monotonic() < until
                time.sleep(0.05)
            barrier()
        return result

    Loop.step = step  # type: ignore[method-assign]
    try:
        run_training(folder)
    except Exception:
        time.sleep(2.0 * rank)  # where rank 0 alone knows why, the others see it go; its word is the one to be heard
        raise


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.parametrize(
    ("log_every", "message"),
    [
        (1, "metrics.jsonl: cannot be written: .*Read-only"),
        (100, r"checkpoint of step \d+ could not be .*Read-only"),
    ],
    ids=["metrics", "checkpoint"],
)
def test_a_folder_that_becomes_read_only_is_one_clear_error_and_keeps_the_last_good_checkpoint(
    model: Path, tmp_path: Path, log_every: int, message: str
) -> None:
    from tests.distributed.training_folder import build_tokens

    tokens = build_tokens(tmp_path / "tokens", model)
    disk = tmp_path / "disk"
    mount_disk(disk, "50m")
    try:
        build_stage(disk / "run", model, tokens, keep_checkpoints=1, keep_every=1, log_every=log_every)
        with pytest.raises(RankError, match=message) as raised:
            run_ranks(2, train_until_read_only, disk / "run", disk)
        assert "the last checkpoint is intact" in str(raised.value)
        whole = sorted((disk / "run" / "checkpoints").glob("[0-9]*/done.json"))
        position, said = run_ranks(1, load_position, model, disk / "run")
        assert (position["step"], said) == (int(whole[-1].parent.name), "")
    finally:
        unmount(disk)


def load_position(rank: int, world_size: int, model: Path, folder: Path) -> Any:
    return Trained(model, folder).load()
