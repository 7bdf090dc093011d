"""What squeue, sacct and scontrol print, as jobs. Pure: text in, jobs out; client.py does the asking.

Fields are separated by a control character, which no name or comment of ours can hold (profile.py refuses them), so a
run named `strength=1e+06,seed=0` or a comment with `|` in it reads as it is. A line that has another number of fields
is somebody else's (a banner, `CLUSTER: x`, a job whose comment holds a newline) and is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hpc_ewc.node.slurm_command import SEPARATOR

QUEUE_FIELDS = {
    "JobArrayID": 60,
    "State": 24,
    "Reason": 80,
    "NodeList": 240,
    "RestartCnt": 12,
    "TimeUsed": 24,
    "exit_code": 12,
    "tres-alloc": 240,
    "Partition": 120,
    "Name": 600,
    "Comment": 300,
}
"""Of `squeue -O`, each with its width: without one a field is cut off at 20 characters."""
QUEUE_FORMAT = ",".join(f"{name}:{width}{SEPARATOR}" for name, width in QUEUE_FIELDS.items())
ACCOUNT_FIELDS = (
    "JobID",
    "State",
    "Reason",
    "NodeList",
    "ElapsedRaw",
    "ExitCode",
    "AllocTRES",
    "Partition",
    "JobName",
    "Comment",
)
"""Of `sacct -P`."""
WAITING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD"}
)
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "RECONFIG_FAIL",
        "REVOKED",
        "TIMEOUT",
    }
)
NOTHING = ("", "None", "(null)", "N/A", "None assigned", "Unknown")


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one element of an array, as the scheduler tells it."""

    job_id: str
    """`123`, or `123_4` for an element."""
    main_id: str
    element: str = ""
    name: str = ""
    comment: str = ""
    state: str = "PENDING"
    """Slurm's base word: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, PREEMPTED, …"""
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    exit_code: str = ""
    """`<status>:<signal>`."""
    gpus: int = 0
    """Of all its nodes; 0 also where the site does not count them."""
    gpu_s: float = 0.0
    """GPU-seconds of all attempts that are known."""
    partition: str = ""
    """Of a job that waits, perhaps several."""

    @property
    def ended(self) -> bool:
        """No attempt follows; a state that is not known (a newer Slurm's) has not ended."""
        return self.state in ENDED

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def runs(self) -> bool:
        """Holds nodes: also while it starts, is suspended or completes."""
        return not self.ended and not self.waits


def split_id(text: str) -> list[tuple[str, str]]:
    """(main id, element)s of `123`, `123_4`, `123_[4-6,9%2]` or `123_[0-8:4]`; none where it is no such thing.

    A list that Slurm cut off (`123_[1,3,…`) gives the elements that can be told.
    """
    matched = re.fullmatch(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]*)(?:%\d+)?(?:\.\.\.)?\]?))?", text.strip())
    if matched is None:
        return []
    main, element, listed = matched.groups()
    if listed is None:
        return [(main, element or "")]
    return [(main, str(number)) for number in expand(listed)]


def expand(listed: str) -> Iterator[int]:
    """The numbers of `4-6,9` or `0-8:4`."""
    for part in listed.split(","):
        matched = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if matched:
            first, last, step = matched.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1))


def parse_queue(text: str) -> list[SlurmJob]:
    """Jobs of `squeue -h -O QUEUE_FORMAT`, elements of pending arrays each for itself."""
    found: list[SlurmJob] = []
    for fields in _lines(text, len(QUEUE_FIELDS) + 1):  # each field ends with a separator
        ids, state, reason, nodes, restarts, elapsed, status, tres, partition, name, comment = fields[:-1]
        job = _job(name, comment, state, reason, nodes, parse_duration(elapsed), _wait_status(status), tres)
        found += _each(ids, replace(job, restarts=_number(restarts), partition=partition))
    return found


def parse_accounting(text: str) -> list[SlurmJob]:
    """Jobs of `sacct -X -D -n -P`, the attempts of each as one: the last, with the restarts and GPU time of all."""
    attempts: dict[str, list[SlurmJob]] = {}
    for fields in _lines(text, len(ACCOUNT_FIELDS)):
        ids, state, reason, nodes, elapsed, status, tres, partition, name, comment = fields
        seconds = float(elapsed) if elapsed.isdigit() else 0.0
        job = _job(name, comment, state, reason, nodes, seconds, status, tres)
        for one in _each(ids, replace(job, partition=partition)):
            attempts.setdefault(one.job_id, []).append(one)
    return [_last_of(tried) for tried in attempts.values()]


def _last_of(tried: list[SlurmJob]) -> SlurmJob:
    """A job id may come round again after years: what has another name is another job."""
    last = tried[-1]
    same = [attempt for attempt in tried if attempt.name == last.name]
    restarts = len(same) if last.state == "REQUEUED" else len(same) - 1
    return replace(last, restarts=restarts, gpu_s=sum(attempt.gpu_s for attempt in same))


def parse_details(text: str) -> list[SlurmJob]:
    """Jobs of `scontrol -o show job`: `Key=value` by `Key=value`, values not quoted."""
    found: list[SlurmJob] = []
    for line in text.splitlines():
        matched = re.match(r"JobId=(\d+)(.*?) JobName=(.*?) UserId=", line)
        if matched is None:
            continue
        job_id, array, name = matched.groups()
        main, element = _value(array, "ArrayJobId"), _value(array, "ArrayTaskId")
        rest = line[matched.end() :]
        comment = re.search(r" Comment=(.*?) +(?:StdErr|AdminComment|SystemComment)=", rest)
        # one TRES up to 22.05; since then what was asked for and what was given
        tres = _value(rest, "AllocTRES") or _value(rest, "TRES") or _value(rest, "ReqTRES")
        said = comment[1] if comment else ""
        state, reason, nodes = _value(rest, "JobState"), _value(rest, "Reason"), _value(rest, "NodeList")
        seconds = parse_duration(_value(rest, "RunTime"))
        job = _job(name, said, state, reason, nodes, seconds, _value(rest, "ExitCode"), tres)
        job = replace(job, restarts=_number(_value(rest, "Restarts")), partition=_value(rest, "Partition"))
        if not main:
            found += _each(job_id, job)
        else:
            found += _each(f"{main}_{element}" if element.isdigit() else f"{main}_[{element}]", job)
    return found


def _job(
    name: str,
    comment: str,
    state: str,
    reason: str,
    nodes: str,
    seconds: float,
    status: str,
    tres: str,
) -> SlurmJob:
    """A job whose ids are still to be told; `NAME` is kept as it is, of the rest Slurm's ways of saying nothing go."""
    gpus = count_gpus(tres)
    return SlurmJob(
        job_id="",
        main_id="",
        name=name,
        comment=_something(comment),
        state=base_state(state),
        reason=_something(reason),
        nodes=_something(nodes),
        exit_code=status,
        gpus=gpus,
        gpu_s=gpus * seconds,
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _value(text: str, key: str) -> str:
    """The value of the first ` key=`; it holds no blank."""
    matched = re.search(rf"(?:^|\s){key}=(\S*)", text)
    return matched[1] if matched else ""


def parse_settings(text: str) -> dict[str, str]:
    """`scontrol show config`: `Key = value` lines."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"\w+", key.strip()):
            found[key.strip()] = value.strip()
    return found


def base_state(text: str) -> str:
    """`CANCELLED by 1000`, `CANCELLED+`, `COMPLETED,REVOKED` → the first word."""
    words = re.split(r"[\s+,]", text.strip(), maxsplit=1)
    return words[0].upper()


def parse_duration(text: str) -> float:
    """Seconds of `45:10`, `2:03:04` or `1-02:03:04`; 0 of anything else (`INVALID`, `N/A`)."""
    matched = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text.strip())
    if matched is None:
        return 0.0
    days, hours, minutes, seconds = (int(group or 0) for group in matched.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def count_gpus(tres: str) -> int:
    """GPUs in `cpu=1,gres/gpu=4,gres/gpu:a100=4`: the plain count where there is one, else those by kind."""
    plain = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
    if plain:
        return int(plain[1])
    return sum(int(n) for n in re.findall(r"(?:^|,)gres/gpu:[^=,]+=(\d+)", tres))


def _wait_status(text: str) -> str:
    """`<status>:<signal>`, as sacct says it, of what squeue prints: the number that wait() gave."""
    if not text.isdigit():
        return text if re.fullmatch(r"\d+:\d+", text) else ""
    return f"{int(text) >> 8}:{int(text) & 0x7F}"


def _lines(text: str, fields: int) -> Iterator[list[str]]:
    for line in text.split("\n"):
        found = [field.strip() for field in line.split(SEPARATOR)]
        if len(found) == fields:
            yield found


def _each(ids: str, job: SlurmJob) -> Iterable[SlurmJob]:
    for main, element in split_id(ids):
        yield replace(job, job_id=f"{main}_{element}" if element else main, main_id=main, element=element)


def _something(text: str) -> str:
    return "" if text in NOTHING else text


def expand_hosts(text: str) -> list[str]:
    """The names in `n1,rack[01-02]gpu[3,5]`, in Slurm's order; the number of digits is kept."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        names = [""]
        for plain, listed in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            ends = _numbered(listed) if listed else [plain]
            names = [name + end for name in names for end in ends]
        found += names
    return found


def _numbered(listed: str) -> list[str]:
    """`01-02,7` → 01, 02, 7."""
    found = []
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += [f"{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)]
    return found
