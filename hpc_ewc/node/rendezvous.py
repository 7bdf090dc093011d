"""Rendezvous of the torchruns of a job's nodes: node 0 reserves a free port and publishes it on the shared file system.

A port made from the job's id sooner or later collides with another job's. The port stays bound, without listening,
until torchrun on node 0 listens on it (both with SO_REUSEADDR, which Linux allows as long as only one of them listens),
so that no other process is given it in between.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_ewc import records, rundir
from hpc_ewc.errors import StageError
from hpc_ewc.node.attempt import poll_until
from hpc_ewc.node.commands import STANDALONE
from hpc_ewc.node.task import JobContext

JOIN_S = 600
"""How long nodes wait for each other: imports from a busy file system take minutes."""


@contextmanager
def rendezvous_arguments(
    context: JobContext, job: Path, host_suffix: str = "", is_over: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, ...] | None]:
    """Yield torchrun's arguments by which the nodes of one attempt find each other, and reserve the port meanwhile.

    Yields None on a node that waited while node 0 ended the attempt.

    Args:
        context: this node.
        job: runs/NAME/jobs/<job_id>.
        host_suffix: what a host name needs to be reached over the fast network.
        is_over: whether the attempt has ended before the nodes met.

    Raises:
        StageError: node 0 published no port in time.
    """
    if len(context.hosts) == 1:
        yield STANDALONE
        return

    def arguments(port: int) -> tuple[str, ...]:
        return (
            f"--nnodes={len(context.hosts)}",
            "--rdzv-backend=c10d",
            f"--rdzv-id={context.job_id}.{context.restart}",
            f"--rdzv-endpoint={context.hosts[0]}{host_suffix}:{port}",
            f"--rdzv-conf=is_host={int(context.node == 0)},join_timeout={JOIN_S}",
            f"--local-addr={context.hosts[context.node]}{host_suffix}",
        )

    path = rundir.port_file(job, context.restart)
    if context.node == 0:
        with reserved_port() as port:
            records.write_text(path, f"{port}\n")
            yield arguments(port)
    else:
        published = read_port(path, is_over)
        yield arguments(published) if published else None


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of this machine: no process is given it, though one may listen on it with SO_REUSEADDR."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(("", 0))
        yield int(bound.getsockname()[1])


def read_port(path: Path, is_over: Callable[[], bool] = lambda: False, timeout_s: float = JOIN_S) -> int | None:
    """The port that node 0 published; None if the attempt was over before.

    Raises:
        StageError: none was published in time.
    """
    for _ in poll_until(timeout_s):
        if is_over():
            return None
        with suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
    raise StageError(
        f"{path}: node 0 published no port within {timeout_s:g} s: did its task start, and can all nodes see this "
        "folder?"
    )
