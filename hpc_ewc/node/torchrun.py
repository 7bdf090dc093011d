"""What a job runs before its ranks: start the worker, pass on the wish to stop, keep what it ended with.

One such launcher runs on each node, as submitit's task, in the host's Python; it imports no torch. The worker gets a
session of its own: signals of a terminal and of Slurm reach the launcher alone, which turns them into a stop file, seen
by every rank wherever it runs, and USR2 to the ranks of its node. USR2 is ignored until a rank has its handler
(an ignored signal stays ignored through exec), so a rank that is still importing does not die of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from hpc_ewc import records, rundir
from hpc_ewc.process import Process, children, die_with_parent, send

POLL_S = 0.2
WORKER = "hpc_ewc.worker"
REPORT_MODULE = "hpc_ewc.report"


@dataclass(frozen=True)
class WorkerJob:
    """What submitit calls in the job; only plain values, so that its pickle says the same on any node."""

    command: tuple[str, ...]
    """The worker's command line, torchrun included."""
    job_id: str
    folder: str
    """runs/NAME/jobs/<job_id>."""
    environment: dict[str, str] = field(default_factory=dict)
    torchrun: bool = False
    owner: Process | None = None
    """The foreground submit of a local job: when it is gone, the job stops."""

    def __call__(self) -> int:
        """Run the worker to its end, and return its exit status. Nobody decides by it alone: see outcome.py."""
        return Launcher(self).run()


class Launcher:
    """One attempt of one job."""

    def __init__(self, job: WorkerJob) -> None:
        self.job = job
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.folder = Path(job.folder)
        self.stop_file = rundir.stop_file(self.folder, self.restart)
        self.worker: WorkerProcess | None = None
        self.parent = os.getppid()

    def run(self) -> int:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self.stop_file.exists():  # asked to stop while it was being started
            return self._end(0)
        self.worker = WorkerProcess(self.job.command, self._environment(), self._logs(), self.job.torchrun)
        while (status := self.worker.poll()) is None:
            self._pass_on_stop()
            time.sleep(POLL_S)
        return self._end(status)

    def _environment(self) -> dict[str, str]:
        named = {"HPC_EWC_JOB_ID": self.job.job_id, "HPC_EWC_STOP_FILE": str(self.stop_file)}
        return os.environ | self.job.environment | named

    def _logs(self) -> Path | None:
        """Torchrun keeps what its ranks print under ranks/; what one plain worker prints goes to the same place."""
        return None if self.job.torchrun else rundir.rank_logs(self.folder) / f"attempt_{self.restart}" / "0"

    # ------------------------------------------------------------------------------------------ stop

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        self.stop_file.touch()

    def _pass_on_stop(self) -> None:
        owner = self.job.owner
        if owner is not None and (not owner.is_alive() or os.getppid() != self.parent):
            self._ask_to_stop()
        if self.worker is not None and self.stop_file.exists():
            self.worker.request_stop()

    def _end(self, status: int) -> int:
        facts = {"status": status, "stopped": self.stop_file.exists(), "ended_at": time.time()}
        records.write_json(rundir.exit_file(self.folder, self.restart), facts)
        return status


class WorkerProcess:
    """A worker, or torchrun with its ranks, in a session of its own.

    Args:
        command: its command line.
        environment: all of it.
        logs: folder for what it prints, or a file for both; None: to where this process prints.
        torchrun: the children are the ranks.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], logs: Path | None, torchrun: bool):
        self.torchrun, self.asked_to_stop = torchrun, False
        with _open_logs(logs) as (out, err):
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_before_exec,
            )

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def request_stop(self) -> None:
        """Tell the ranks of this node that the stop file is there; once."""
        if not self.asked_to_stop:
            self.asked_to_stop = True
            for rank in children(self.process.pid) if self.torchrun else [self.process.pid]:
                send(rank, signal.SIGUSR2)


@contextmanager
def _open_logs(place: Path | None) -> Iterator[tuple[IO[bytes] | None, IO[bytes] | None]]:
    if place is None:
        yield None, None
        return
    folder = place.parent if place.suffix == ".log" else place
    folder.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".log":
        with place.open("ab") as both:
            yield both, both
        return
    with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
        yield out, err


def _before_exec() -> None:
    """In the child: end with the launcher (of TERM, torchrun takes its ranks along); no USR2 before a handler is up."""
    die_with_parent()
    for number in (signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)


# ---------------------------------------------------------------------------------------------- command lines


def local_command(
    python: str, stage: str, folder: Path, arguments: Sequence[str], *, ranks: int, job: Path
) -> tuple[str, ...]:
    """The command line of a worker on one machine. Always -m: by path, `import evaluate` would find ours.

    Args:
        python: of the jobs.
        stage: tokens, fisher, train or evaluate.
        folder: of the artefact.
        arguments: further ones of the worker.
        ranks: processes of fisher and train, of all nodes, since here all nodes are this one.
        job: its folder.
    """
    worker = ("-m", WORKER, stage, str(folder), *arguments)
    if not uses_torchrun(stage):
        return (python, *worker)
    # --standalone: c10d on a free port of this machine, so that jobs that start at once do not meet
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--max-restarts=0"]
    logs = [f"--nproc-per-node={ranks}", f"--log-dir={rundir.rank_logs(job)}", "--redirects=3"]
    return (python, *torchrun, *logs, *worker)


def report_command(python: str, root: Path, out: Path) -> tuple[str, ...]:
    """The command line of the report job."""
    return (python, "-m", REPORT_MODULE, str(root), "--out", str(out))


def uses_torchrun(stage: str) -> bool:
    return stage in ("fisher", "train")


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def worker_environment(
    code: Path, profile_env: Mapping[str, str], threads: int, *, one_node: bool = True
) -> dict[str, str]:
    """What a worker gets beside the environment of `submit`.

    Args:
        code: folder that holds the package as it was at submission.
        profile_env: the profile's `env`, which comes before the rest.
        threads: OMP_NUM_THREADS; ranks times threads never exceed the job's cores.
        one_node: gloo needs no network; else it takes the interface of the host's own name, or the profile's.
    """
    given = os.environ.get("PYTHONPATH")
    found = {"PYTHONPATH": os.pathsep.join([str(code), *([given] if given else [])]), "PYTHONSAFEPATH": "1"}
    found |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    found |= {"HPC_EWC_CACHE": str(rundir.cache_dir()), "HPC_EWC_COMMIT": _commit(code)}
    found |= {"GLOO_SOCKET_IFNAME": "lo"} if one_node else {}
    return found | OFFLINE | dict(profile_env)


def _commit(code: Path) -> str:
    """For manifests: `<commit>`, `<commit>+dirty` where the package's files differ from it, "" without git."""
    facts = records.read_json(code / "code.json")
    return f"{facts['commit'] or ''}{'+dirty' if facts['dirty'] else ''}"
