"""One real cluster for all tests of this folder, in a state folder of its own; gone afterwards, whatever happened."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, require
from tests.slurm.sandbox import Sandbox
from tests.slurm.world import World, make_world

TOOL = REPOSITORY / "slurm" / "sandbox"


@pytest.fixture(scope="session")
def can_start() -> None:
    """Skip, or fail where CI requires Slurm: not root, or Debian's packages are missing."""
    import sys

    # a command on a folder without a sandbox checks the machine first
    nowhere = Path(tempfile.gettempdir()) / "hpc-ewc-no-sandbox"
    tried = subprocess.run(
        [sys.executable, str(TOOL), "down", "--state", str(nowhere)], capture_output=True, text=True, timeout=60
    )
    if tried.returncode:
        require("slurm", tried.stderr.strip())


@pytest.fixture(scope="session")
def make_sandbox(can_start: None) -> Iterator[Callable[[], Sandbox]]:
    """Sandboxes, not started yet; their paths are short, as sockets lie in them."""
    made: list[Sandbox] = []

    def make() -> Sandbox:
        folder = Path(tempfile.mkdtemp(prefix="hpc-ewc-test-"))
        made.append(Sandbox(TOOL, folder / "s"))
        return made[-1]

    yield make
    failed = [done.stderr for sandbox in made if (done := sandbox.run("down")).returncode]
    for sandbox in made:
        shutil.rmtree(sandbox.state.parent, ignore_errors=True)
    assert not failed


@pytest.fixture(scope="session")
def cluster(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    """A cluster that is up."""
    sandbox = make_sandbox()
    sandbox.do("up")
    return sandbox


@pytest.fixture(scope="session")
def undisturbed(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The experiment of the fault tests on this machine, without Slurm and without faults."""
    world = make_world(tmp_path_factory.mktemp("here") / "undisturbed", None, miniature)
    done = world.submit()
    assert done.returncode == 0, done.stderr
    return world


@pytest.fixture
def world(
    cluster: Sandbox, miniature: Path, undisturbed: World, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[World]:
    """The same experiment on the cluster, tokens and Fisher made already; named after the test."""
    name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")[:40].strip("_-")
    made = make_world(tmp_path / name, cluster, miniature, given=undisturbed.root.root)
    yield made
    cluster.run("up")
    left = [job.job_id for job in made.jobs()]
    if left:
        cluster.slurm("scancel", *left)
        made.finish()
