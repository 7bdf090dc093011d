"""Settings of one sandbox: folder, nodes and ports. They are written to `sandbox.json`, which every command reads."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FILE = "sandbox.json"
PORTS_FROM, PORTS_TO, BLOCK = 20000, 32000, 32
"""Ports below 32768, from where the kernel assigns its own; a cluster takes a block of 32."""
MAX_NODES = 16
LONGEST_STATE = 80
"""Longest path of a state folder: a Unix socket's path may have 107 characters, and the folder has two sockets."""


class SandboxError(Exception):
    """Error for the user: one line, or with the tail of a log."""


@dataclass(frozen=True)
class Settings:
    """One cluster. Two at once differ in `state`, and therefore in `prefix` and `base_port`."""

    state: Path
    prefix: str = "node"
    """Prefix of the nodes' names, and so of cgroups: no two clusters on a machine may share it."""
    base_port: int = PORTS_FROM
    nodes: int = 4
    gpus: int = 2
    """GPUs per node: null devices on which no program computes."""
    cpus: int = 1
    """CPUs that each node reports."""
    mem_mb: int = 4000
    proctrack: str = "linuxproc"

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}{number}" for number in range(1, self.nodes + 1)]

    def address(self, name: str) -> str:
        return f"127.0.1.{self.number(name)}"

    def node_port(self, name: str) -> int:
        return self.base_port + 3 + self.number(name)

    def number(self, name: str) -> int:
        """Return a node's number, from 1.

        Raises:
            SandboxError: there is no such node.
        """
        if name not in self.names:
            raise SandboxError(f"no node {name!r}: this sandbox has {', '.join(self.names)}")
        return self.names.index(name) + 1

    @property
    def ctld_port(self) -> int:
        return self.base_port

    @property
    def dbd_port(self) -> int:
        return self.base_port + 1

    @property
    def db_port(self) -> int:
        return self.base_port + 2

    @property
    def ports(self) -> list[int]:
        return [self.ctld_port, self.dbd_port, self.db_port, *map(self.node_port, self.names)]

    # files of the state folder
    @property
    def conf(self) -> Path:
        return self.state / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.state / "munge" / "socket"

    def log(self, daemon: str) -> Path:
        return self.state / "log" / f"{daemon}.log"

    def pid_file(self, daemon: str) -> Path:
        return self.state / "run" / f"{daemon}.pid"

    def save(self) -> None:
        facts = asdict(self) | {"state": str(self.state)}
        (self.state / FILE).write_text(json.dumps(facts, indent=1) + "\n")


def default_state() -> Path:
    """Return `$XDG_RUNTIME_DIR/hpc-ewc-sandbox`, or `/tmp/hpc-ewc-sandbox-UID` without that variable."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "hpc-ewc-sandbox"
    return Path(f"/tmp/hpc-ewc-sandbox-{os.geteuid()}")  # noqa: S108 - made 0700, and refused if another user owns it


def load(state: Path) -> Settings | None:
    """Load the sandbox in a folder; None if there is none.

    Raises:
        SandboxError: the folder has other files, which `down` would remove.
    """
    try:
        facts = json.loads((state / FILE).read_text())
        return Settings(**facts | {"state": state})
    except FileNotFoundError:
        if state.is_dir() and any(state.iterdir()):
            raise SandboxError(f"{state} is not a sandbox's: it holds other files; name another --state") from None
        return None
    except (ValueError, TypeError) as error:
        raise SandboxError(f"{state / FILE} cannot be read ({error}): remove {state} by hand") from None


def make_state(state: Path) -> None:
    """Make the folder, with access for this user only.

    Raises:
        SandboxError: the folder belongs to another user, or its path is too long for the sockets in it.
    """
    if len(str(state)) > LONGEST_STATE:
        raise SandboxError(f"--state {state}: at most {LONGEST_STATE} characters, for the sockets in it; shorten it")
    state.parent.mkdir(parents=True, exist_ok=True)
    state.mkdir(mode=0o700, exist_ok=True)
    found = state.lstat()
    if state.is_symlink() or not state.is_dir() or found.st_uid != os.geteuid():
        raise SandboxError(f"{state} is not a folder of this user: name another --state")
    state.chmod(0o700)


def choose(state: Path, default: bool, nodes: int, gpus: int, cpus: int | None, proctrack: str) -> Settings:
    """Return the settings of a new sandbox, with unique node names and free ports.

    Raises:
        SandboxError: the number of nodes is out of range; no ports are free.
    """
    if not 1 <= nodes <= MAX_NODES:
        raise SandboxError(f"--nodes {nodes}: from 1 to {MAX_NODES}")
    digest = hashlib.sha256(str(state).encode()).digest()
    letters = "".join(chr(ord("a") + byte % 26) for byte in digest[:4])
    prefix = "node" if default else f"node{letters}"
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    chosen = Settings(
        state=state,
        prefix=prefix,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus or max(1, cores // 2),  # more than the machine has, but not so many that everything runs at once
        mem_mb=max(1000, memory // nodes),
        proctrack=proctrack,
    )
    return with_free_ports(chosen)


def with_free_ports(settings: Settings) -> Settings:
    """Return the settings with a block of free ports: the folder's own block if it is free."""
    count = (PORTS_TO - PORTS_FROM) // BLOCK
    first = int.from_bytes(hashlib.sha256(str(settings.state).encode()).digest()[:4], "big") % count
    for number in range(count):
        tried = replace(settings, base_port=PORTS_FROM + (first + number) % count * BLOCK)
        if all(is_free(port) for port in tried.ports):
            return tried
    raise SandboxError(f"no {BLOCK} free ports between {PORTS_FROM} and {PORTS_TO}")


def is_free(port: int) -> bool:
    """Whether a daemon could listen on a port; connections that are being closed do not count."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return False
    return True
