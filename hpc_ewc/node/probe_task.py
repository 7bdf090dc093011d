"""The test job of `hpc-ewc doctor`: it uses submitit, setup lines, container and rendezvous like every other job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ewc.errors import StageError
from hpc_ewc.node.commands import python_command, torchrun_arguments
from hpc_ewc.node.node_attempt import NodeAttempt
from hpc_ewc.node.rendezvous import rendezvous_arguments
from hpc_ewc.node.task import JobContext, JobTask

PROBE = "hpc_ewc.worker.probe"


@dataclass(frozen=True)
class ProbeTask(JobTask):
    """The test job's task; `folder` receives the findings, `nonce` is a file that all nodes should see."""

    nonce: str = ""

    def __call__(self) -> str:
        """Check this node, then sum one tensor over all ranks of all nodes.

        Raises:
            StageError: one of the two failed on this node.
        """
        attempt = NodeAttempt(self, JobContext.from_slurm())
        attempt.job.mkdir(parents=True, exist_ok=True)
        with attempt.worker_environment() as environment:
            node = ("-m", PROBE, "node", "--out", self.folder, "--nonce", self.nonce)
            self._run(attempt, "node", node, environment)
            if self.nodes * self.nproc_per_node > 1:
                with rendezvous_arguments(attempt.context, attempt.job, self.host_suffix) as arguments:
                    if arguments is not None:
                        all_reduce = ("-m", PROBE, "all-reduce", "--out", self.folder)
                        program = torchrun_arguments(arguments, self.nproc_per_node, all_reduce)
                        self._run(attempt, "all-reduce", program, environment)
        return "finished"

    def _run(self, attempt: NodeAttempt, name: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        logs = attempt.logs / name / "0"
        status = attempt.run_worker(python_command(self, arguments), environment, logs, torchrun=False)
        if status:
            host = attempt.context.hosts[attempt.context.node]
            raise StageError(f"{name} ended with status {status} on {host}: see {logs}")
