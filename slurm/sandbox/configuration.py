"""Write the files that Slurm's daemons read: text, which is rendered each time, and keys and devices, made once."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from pathlib import Path

from settings import Settings

FOLDERS = ("etc", "run", "log", "munge", "ctld", "spool", "dev", "scratch")
DATABASE, DATABASE_USER = "slurm_acct_db", "slurm"


def write_all(settings: Settings) -> None:
    """Write everything in the state folder that the daemons need before they start."""
    state, etc = settings.state, settings.state / "etc"
    for folder in FOLDERS:
        (state / folder).mkdir(exist_ok=True)
    for name in settings.names:
        (state / "spool" / name).mkdir(exist_ok=True)
    make_secret(state / "munge" / "key", secrets.token_bytes(128))
    make_secret(etc / "password", secrets.token_hex(16).encode())
    password = (etc / "password").read_text()
    make_devices(state / "dev", settings.gpus)
    settings.conf.write_text(slurm_conf(settings))
    (etc / "gres.conf").write_text(gres_conf(settings))
    (etc / "cgroup.conf").write_text(CGROUP_CONF)
    (etc / "hosts").write_text(hosts(settings))
    write_private(etc / "slurmdbd.conf", slurmdbd_conf(settings, password))
    write_private(etc / "database.sql", database_sql(password))


def make_secret(path: Path, content: bytes) -> None:
    """Write a secret if there is none; running daemons use the existing one."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(content)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; slurmdbd refuses any other configuration."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)


def make_devices(folder: Path, gpus: int) -> None:
    """Make copies of /dev/null as GPUs, because Slurm assigns GPUs by their device files."""
    for number in range(gpus):
        path = folder / f"nvidia{number}"
        if not path.exists():
            try:
                os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            except PermissionError:  # a container without CAP_MKNOD; nothing opens the files
                path.touch(mode=0o600)


def short_hostname() -> str:
    return socket.gethostname().split(".")[0]


def slurm_conf(settings: Settings) -> str:
    """Return slurm.conf: a production cluster's plugins with short timeouts; comments explain or name the defaults."""
    state, all_nodes = settings.state, ",".join(settings.names)
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr={settings.address(name)} Port={settings.node_port(name)} "
        f"CPUs={settings.cpus} RealMemory={settings.mem_mb} Gres=gpu:{settings.gpus} State=UNKNOWN"
        for name in settings.names
    )
    return f"""\
ClusterName=sandbox
SlurmctldHost={short_hostname()}(127.0.0.1)
SlurmctldPort={settings.ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits this long (120 s by default) before it starts again
AuthInfo=socket={settings.munge_socket},cred_expire=10
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/run/slurmctld.own-pid
SlurmdPidFile={state}/run/slurmd.%n.own-pid
SlurmctldLogFile={settings.log("slurmctld")}
SlurmdLogFile={state}/log/%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose

ProctrackType=proctrack/{settings.proctrack}
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=10
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Nodes have the resources in this file, whatever the machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
RebootProgram=/bin/true

# Defaults: SlurmdTimeout 300, KillWait 30, UnkillableStepTimeout 60, sched_interval 60, MinJobAge 300
SlurmctldTimeout=30
SlurmdTimeout=15
TCPTimeout=2
MessageTimeout=10
KillWait=5
UnkillableStepTimeout=15
EpilogMsgTime=20
BatchStartTimeout=10
MinJobAge=600
InactiveLimit=0
WaitTime=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,bf_continue
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MaxArraySize=1001
EnforcePartLimits=ALL
PropagateResourceLimitsExcept=MEMLOCK

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={settings.dbd_port}
AccountingStoragePass={settings.munge_socket}
AccountingStorageTRES=gres/gpu

{nodes}
# main: for most jobs; jobs in urgent preempt them, with 15 s to save. nograce: preempted at once.
PartitionName=DEFAULT Nodes={all_nodes} State=UP MaxTime=240 DefaultTime=10 DefMemPerCPU=500
PartitionName=main Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime=15
PartitionName=nograce PriorityTier=10 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent PriorityTier=100 PreemptMode=OFF
"""


CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
"""


def gres_conf(settings: Settings) -> str:
    """Return gres.conf: the device files of each node's GPUs; without a File, nodes were INVAL."""
    if not settings.gpus:
        return ""
    last = settings.gpus - 1
    return f"NodeName={','.join(settings.names)} Name=gpu File={settings.state}/dev/nvidia[0-{last}]\n"


def hosts(settings: Settings) -> str:
    """Return each node's /etc/hosts, in which all nodes have addresses of this machine."""
    lines = ["127.0.0.1 localhost", "::1 localhost", f"127.0.0.1 {short_hostname()}"]
    lines += [f"{settings.address(name)} {name}" for name in settings.names]
    return "\n".join(lines) + "\n"


def slurmdbd_conf(settings: Settings, password: str) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={settings.munge_socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={settings.dbd_port}
SlurmUser=root
LogFile={settings.log("slurmdbd")}
PidFile={settings.state}/run/slurmdbd.own-pid
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={settings.db_port}
StorageUser={DATABASE_USER}
StoragePass={password}
StorageLoc={DATABASE}
CommitDelay=1
"""


def database_sql(password: str) -> str:
    """Return the SQL that MariaDB runs at each start: the database and its only user. The password is hexadecimal."""
    text = f"CREATE DATABASE IF NOT EXISTS {DATABASE};\n"
    for host in ("localhost", "127.0.0.1"):
        user = f"'{DATABASE_USER}'@'{host}'"
        text += f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{password}';\nGRANT ALL ON {DATABASE}.* TO {user};\n"
    return text
