"""Jobs from the output of squeue, sacct and scontrol. No input or output here; client.py runs the commands.

Fields are separated by a control character, which the profile's reader refuses in names and comments, so a run named
`strength=1e+06,seed=0` or a comment with `|` in it is read correctly. A line with another number of fields is not a job
(a banner, `CLUSTER: x`, a job whose comment contains a newline) and is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hpc_ewc.node.slurm_command import SEPARATOR

FIELDS = {
    "ids": ("JobArrayID", 60, "JobID"),
    "state": ("State", 24, "State"),
    "reason": ("Reason", 80, "Reason"),
    "nodes": ("NodeList", 240, "NodeList"),
    "restarts": ("RestartCnt", 12, ""),
    "elapsed": ("TimeUsed", 24, "ElapsedRaw"),
    "exit_code": ("exit_code", 12, "ExitCode"),
    "tres": ("tres-alloc", 240, "AllocTRES"),
    "partition": ("Partition", 120, "Partition"),
    "name": ("Name", 600, "JobName"),
    "comment": ("Comment", 300, "Comment"),
}
"""Field of `squeue -O`, its width (without one it is cut off at 20 characters), and field of `sacct -P`."""
QUEUE_FIELDS = {name: width for name, width, _ in FIELDS.values()}
QUEUE_FORMAT = ",".join(f"{name}:{width}{SEPARATOR}" for name, width in QUEUE_FIELDS.items())
ACCOUNT_FIELDS = tuple(name for *_, name in FIELDS.values() if name)
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD"}
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
}
EMPTY = ("", "None", "(null)", "N/A", "None assigned", "Unknown")


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one element of an array, as Slurm reports it."""

    job_id: str
    """`123`, or `123_4` for an element."""
    main_id: str
    element: str = ""
    name: str = ""
    comment: str = ""
    state: str = "PENDING"
    """Slurm's base state: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, PREEMPTED, …"""
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    exit_code: str = ""
    """`<status>:<signal>`."""
    gpus: int = 0
    """On all its nodes; 0 also where the site does not count them."""
    gpu_s: float = 0.0
    """GPU-seconds of all known attempts."""
    partition: str = ""
    """A pending job may have several, separated by commas."""

    @property
    def ended(self) -> bool:
        """Whether no attempt follows. An unknown state, of a newer Slurm, counts as not ended."""
        return self.state in ENDED

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def runs(self) -> bool:
        """Whether it has nodes: also while it starts, is suspended or completes."""
        return not self.ended and not self.waits


def parse_queue(text: str) -> list[SlurmJob]:
    """Return the jobs of `squeue -h -O QUEUE_FORMAT`, with the elements of pending arrays as separate jobs."""
    found: list[SlurmJob] = []
    for row in _rows(text, [*FIELDS, "rest"]):  # each field ends with a separator
        row["exit_code"] = _exit_code(row["exit_code"])
        found += _jobs(row, parse_duration(row["elapsed"]))
    return found


def parse_accounting(text: str) -> list[SlurmJob]:
    """Return the jobs of `sacct -X -D -n -P`: the last attempt of each, with the restarts and GPU time of all."""
    attempts: dict[str, list[SlurmJob]] = {}
    for row in _rows(text, [key for key, (*_, name) in FIELDS.items() if name]):
        seconds = float(row["elapsed"]) if row["elapsed"].isdigit() else 0.0
        for job in _jobs(row, seconds):
            attempts.setdefault(job.job_id, []).append(job)
    return [_join_attempts(jobs) for jobs in attempts.values()]


def parse_details(text: str) -> list[SlurmJob]:
    """Return the jobs of `scontrol -o show job`: unquoted `Key=value` pairs."""
    found: list[SlurmJob] = []
    for line in text.splitlines():
        matched = re.match(r"JobId=(\d+)(.*?) JobName=(.*?) UserId=", line)
        if matched is None:
            continue
        job_id, array, name = matched.groups()
        main, element = _value(array, "ArrayJobId"), _value(array, "ArrayTaskId")
        rest = line[matched.end() :]
        comment = re.search(r" Comment=(.*?) +(?:StdErr|AdminComment|SystemComment)=", rest)
        row = {
            "ids": job_id if not main else f"{main}_{element}" if element.isdigit() else f"{main}_[{element}]",
            "name": name,
            "comment": comment[1] if comment else "",
            "state": _value(rest, "JobState"),
            "reason": _value(rest, "Reason"),
            "nodes": _value(rest, "NodeList"),
            "restarts": _value(rest, "Restarts"),
            "exit_code": _value(rest, "ExitCode"),
            # Slurm up to 22.05 has one TRES; later ones have what was requested and what was allocated
            "tres": _value(rest, "AllocTRES") or _value(rest, "TRES") or _value(rest, "ReqTRES"),
            "partition": _value(rest, "Partition"),
        }
        found += _jobs(row, parse_duration(_value(rest, "RunTime")))
    return found


def _rows(text: str, keys: list[str]) -> Iterator[dict[str, str]]:
    for line in text.split("\n"):
        fields = [field.strip() for field in line.split(SEPARATOR)]
        if len(fields) == len(keys):
            yield dict(zip(keys, fields, strict=True))


def _jobs(row: Mapping[str, str], seconds: float) -> Iterator[SlurmJob]:
    """Yield a job for each id of a row. Slurm's words for an empty field become "", except in a name."""
    gpus, restarts = count_gpus(row["tres"]), row.get("restarts", "")
    for main, element in split_id(row["ids"]):
        yield SlurmJob(
            job_id=f"{main}_{element}" if element else main,
            main_id=main,
            element=element,
            name=row["name"],
            comment="" if row["comment"] in EMPTY else row["comment"],
            state=base_state(row["state"]),
            reason="" if row["reason"] in EMPTY else row["reason"],
            nodes="" if row["nodes"] in EMPTY else row["nodes"],
            restarts=int(restarts) if restarts.isdigit() else 0,
            exit_code=row["exit_code"],
            gpus=gpus,
            gpu_s=gpus * seconds,
            partition=row["partition"],
        )


def _join_attempts(attempts: list[SlurmJob]) -> SlurmJob:
    """Return the last attempt with the restarts and GPU time of all.

    Slurm reuses job ids after years: an attempt with another name is another job.
    """
    last = attempts[-1]
    same = [attempt for attempt in attempts if attempt.name == last.name]
    restarts = len(same) if last.state == "REQUEUED" else len(same) - 1
    return replace(last, restarts=restarts, gpu_s=sum(attempt.gpu_s for attempt in same))


def _value(text: str, key: str) -> str:
    """Return the value of the first ` key=`; it contains no blank."""
    matched = re.search(rf"(?:^|\s){key}=(\S*)", text)
    return matched[1] if matched else ""


def _exit_code(text: str) -> str:
    """Return `<status>:<signal>`, sacct's form, of what squeue prints: the number that wait() gave."""
    if not text.isdigit():
        return text if re.fullmatch(r"\d+:\d+", text) else ""
    return f"{int(text) >> 8}:{int(text) & 0x7F}"


def parse_settings(text: str) -> dict[str, str]:
    """Return the `Key = value` lines of `scontrol show config`."""
    return dict(re.findall(r"^\s*(\w+)\s*=[^\S\n]*(.*?)\s*$", text, re.MULTILINE))


def split_id(text: str) -> list[tuple[str, str]]:
    """Return the (main id, element)s of `123`, `123_4`, `123_[4-6,9%2]` or `123_[0-8:4]`; none of any other text.

    A list that Slurm cut off (`123_[1,3,…`) gives the elements that can be read.
    """
    matched = re.fullmatch(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]*)(?:%\d+)?(?:\.\.\.)?\]?))?", text.strip())
    if matched is None:
        return []
    main, element, listed = matched.groups()
    if listed is None:
        return [(main, element or "")]
    return [(main, number) for number in _expand(listed)]


def expand_hosts(text: str) -> list[str]:
    """Return the names in `n1,rack[01-02]gpu[3,5]`, in Slurm's order."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        names = [""]
        for plain, listed in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            ends = list(_expand(listed)) if listed else [plain]
            names = [name + end for name in names for end in ends]
        found += names
    return found


def _expand(listed: str) -> Iterator[str]:
    """Yield the numbers of `4-6,9` or `0-8:4`, as wide as the first of a range: `01-02` → 01, 02."""
    for part in listed.split(","):
        matched = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if matched:
            first, last, step = matched.groups()
            for number in range(int(first), int(last or first) + 1, int(step or 1)):
                yield f"{number:0{len(first)}d}"


def base_state(text: str) -> str:
    """Return the first word of `CANCELLED by 1000`, `CANCELLED+` or `COMPLETED,REVOKED`."""
    return re.split(r"[\s+,]", text.strip(), maxsplit=1)[0].upper()


def parse_duration(text: str) -> float:
    """Return the seconds of `45:10`, `2:03:04` or `1-02:03:04`; 0 of any other text (`INVALID`, `N/A`)."""
    matched = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text.strip())
    if matched is None:
        return 0.0
    days, hours, minutes, seconds = (int(group or 0) for group in matched.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def count_gpus(tres: str) -> int:
    """Return the GPUs in `cpu=1,gres/gpu=4,gres/gpu:a100=4`: the plain count if there is one, else the sum by type."""
    plain = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
    if plain:
        return int(plain[1])
    return sum(int(n) for n in re.findall(r"(?:^|,)gres/gpu:[^=,]+=(\d+)", tres))
