"""Where the torchruns of a job's nodes meet: node 0 takes a free port and publishes it on the shared file system.

A port made from the job's id meets another job's sooner or later. The port is held, bound and not listening, until
torchrun on node 0 listens on it (both with SO_REUSEADDR, which Linux allows as long as only one of them listens), so
that nobody else is given it in between.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_ewc import records, rundir
from hpc_ewc.errors import StageError
from hpc_ewc.node.task import SlurmContext

JOIN_S = 600
"""How long nodes wait for each other: imports from a busy file system take minutes."""
POLL_S = 0.2


@contextmanager
def meet(
    here: SlurmContext, folder: Path, host_suffix: str = "", over: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, ...] | None]:
    """The arguments of torchrun by which the nodes of one attempt find each other; a port is held inside.

    None on a node that waited while node 0 ended the attempt.

    Args:
        here: this node.
        folder: runs/NAME/jobs/<job_id>.
        host_suffix: what a host name needs to be reached over the fast network.
        over: whether the attempt has ended before the nodes met.

    Raises:
        StageError: node 0 published no port in time.
    """
    if len(here.hosts) == 1:
        yield ("--standalone", "--local-addr=127.0.0.1")
        return
    common = (f"--nnodes={len(here.hosts)}", "--rdzv-backend=c10d", f"--rdzv-id={here.job_id}.{here.restart}")
    own = (f"--local-addr={here.hosts[here.node]}{host_suffix}",)
    path = rundir.port_file(folder, here.restart)
    conf = f"--rdzv-conf=is_host={int(here.node == 0)},join_timeout={JOIN_S}"
    host = f"{here.hosts[0]}{host_suffix}"
    if here.node == 0:
        with held_port() as port:
            records.write_text(path, f"{port}\n")
            yield (*common, f"--rdzv-endpoint={host}:{port}", conf, *own)
    else:
        found = read_port(path, over)
        yield (*common, f"--rdzv-endpoint={host}:{found}", conf, *own) if found else None


@contextmanager
def held_port() -> Iterator[int]:
    """A port of this machine that nobody else is given meanwhile, though one may listen on it who says SO_REUSEADDR."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind(("", 0))
        yield int(held.getsockname()[1])


def read_port(path: Path, over: Callable[[], bool] = lambda: False, timeout_s: float = JOIN_S) -> int | None:
    """The port that node 0 published; None if the attempt was over before.

    Raises:
        StageError: none in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if over():
            return None
        with suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
        time.sleep(POLL_S)
    raise StageError(
        f"{path}: node 0 published no port in {timeout_s:g} s: did its task start, and do all nodes see this folder?"
    )
