"""Start the four daemons of the cluster (not of a node), in the order in which they need each other.

Each `start_*` does nothing if its daemon runs, so `up` also repairs a cluster that lost one.
"""

from __future__ import annotations

import shutil
import socket
import subprocess

from processes import ask, pid_of, spawn, wait_for_daemon, wait_until
from settings import SandboxError, Settings

DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")


def start_munged(settings: Settings) -> None:
    if pid_of(settings, "munged"):
        return
    folder = settings.state / "munge"
    settings.munge_socket.unlink(missing_ok=True)
    files = [f"--socket={settings.munge_socket}", f"--key-file={folder}/key", f"--seed-file={folder}/seed"]
    files += [f"--log-file={settings.log('munged')}", f"--pid-file={settings.state}/run/munged.own-pid"]
    # --force: otherwise munged refuses a private (0700) parent folder
    process = spawn(settings, "munged", ["munged", "--foreground", "--force", "--num-threads=4", *files])
    wait_for_daemon(process, settings.munge_socket.exists, "munged", settings)


def start_mariadbd(settings: Settings) -> None:
    if pid_of(settings, "mariadbd"):
        return
    data = settings.state / "database"
    small = ["--innodb-log-file-size=8M", "--skip-name-resolve"]
    if not (data / "complete").exists():  # absent, or interrupted
        shutil.rmtree(data, ignore_errors=True)
        command = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
        made = subprocess.run([*command, *small], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if made.returncode:
            raise SandboxError(f"mariadb-install-db failed ({made.returncode}): {made.stdout}{made.stderr}")
        (data / "complete").touch()
    private = ["--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={settings.state / 'scratch'}"]
    private += [f"--socket={settings.state}/run/mariadbd.socket", f"--pid-file={settings.state}/run/mariadbd.own-pid"]
    private += ["--bind-address=127.0.0.1", f"--port={settings.db_port}"]
    private += [f"--init-file={settings.state}/etc/database.sql"]
    # the data need not survive a crash of the machine, so flushing is off
    fast = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
    fast += ["--skip-log-bin", "--performance-schema=OFF"]
    process = spawn(settings, "mariadbd", ["mariadbd", *private, *small, *fast])
    wait_for_daemon(process, lambda: answers(settings.db_port), "mariadbd", settings)


def start_slurmdbd(settings: Settings) -> None:
    process = None if pid_of(settings, "slurmdbd") else spawn(settings, "slurmdbd", ["slurmdbd", "-D"])
    wait_for_daemon(process, lambda: answers(settings.dbd_port), "slurmdbd", settings)
    wait_until(lambda: is_registered(settings), "the cluster is not in slurmdbd", settings.log("slurmdbd"))


def is_registered(settings: Settings) -> bool:
    """Whether slurmdbd knows the cluster; if not, add it."""
    listed = ask(settings, "sacctmgr", "-nP", "list", "cluster", "format=cluster").stdout.split()
    if "sandbox" not in listed:
        ask(settings, "sacctmgr", "-i", "add", "cluster", "sandbox")
    return "sandbox" in listed


def start_slurmctld(settings: Settings) -> None:
    # -i: start even if a crash left incomplete state files
    process = None if pid_of(settings, "slurmctld") else spawn(settings, "slurmctld", ["slurmctld", "-D", "-i"])
    wait_for_daemon(process, lambda: ctld_answers(settings), "slurmctld", settings)


def ctld_answers(settings: Settings) -> bool:
    return " UP" in ask(settings, "scontrol", "ping").stdout


def answers(port: int) -> bool:
    with socket.socket() as trial:
        trial.settimeout(1.0)
        return trial.connect_ex(("127.0.0.1", port)) == 0
