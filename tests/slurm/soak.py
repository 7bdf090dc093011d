"""An experiment that all sorts of things happen to, drawn from a seed; its numbers must be those of a quiet one.

    python -m tests.slurm.soak --minutes 30 --seed 1        (root, Debian's Slurm: docs/sandbox.md)

Rounds of `soak.toml` on a sandbox of its own, each from nothing, with faults until the minutes are over. Whatever
stands still is submitted again, as its user would. Each round ends with the losses, weights, records and tables of the
same experiment on this machine, bit for bit. What happened is written down as lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.miniature.__main__ import main as make_miniature
from hpc_ewc import records
from tests.conftest import REPOSITORY
from tests.slurm.faults import FAULTS, Victim
from tests.slurm.sandbox import Sandbox
from tests.slurm.world import Numbers, World, make_world, tables_without_jobs

TOOL = REPOSITORY / "slurm" / "sandbox"
NAME = "soak"
DISK_MB = 256
STUCK_S = 1800.0
"""A round that is not done so long after faults have ended has failed."""
AGAIN_S = 20.0
"""Between two looks of the user at what stands still."""
OPEN = {"failed", "stopped", "blocked", "missing"}
"""States that a submit changes."""


class Log:
    """Lines of JSON, to a file and in short to the terminal."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)

    def say(self, what: str, **facts: Any) -> None:
        line = {"at_s": round(time.monotonic() - self.began, 1), "what": what, **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(
            f"{line['at_s']:8.1f}  {what:<10}", " ".join(f"{key}={value}" for key, value in facts.items()), flush=True
        )


class Deck:
    """Faults in random order, each as often as the others."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.cards = dice, list[str]()

    def draw(self) -> str:
        if not self.cards:
            self.cards = sorted(FAULTS)
            self.dice.shuffle(self.cards)
        return self.cards.pop()


class Round:
    """One experiment from nothing to its table.

    Args:
        victim: the experiment, the cluster, the dice.
        deck: of faults.
        log: of the soak.
        until: when faults end, of the monotonic clock.
        every_s: mean time between two faults.
    """

    def __init__(self, victim: Victim, deck: Deck, log: Log, until: float, every_s: float) -> None:
        self.victim, self.deck, self.log, self.until, self.every_s = victim, deck, log, until, every_s
        self.world = victim.world
        self.looked_at = time.monotonic()
        self.said: dict[str, str] = {}

    def run(self) -> None:
        """Until all is done.

        Raises:
            AssertionError: it is not, long after the last fault.
        """
        self._submit()
        due = time.monotonic() + self._pause()
        while not self._is_done():
            assert time.monotonic() < self.until + STUCK_S, f"stands still: {self.world.states()} {self.world.jobs()}"
            if due < time.monotonic() < self.until:
                self._strike()
                due = time.monotonic() + self._pause()
            time.sleep(1.0)

    def _pause(self) -> float:
        return self.victim.dice.expovariate(1 / self.every_s)

    def _strike(self) -> None:
        name = self.deck.draw()
        facts = FAULTS[name](self.victim)
        self.log.say("fault", fault=name, **facts or {"nothing": "to do it to"})

    def _is_done(self) -> bool:
        """Look, and do what a user does who sees that something stands still."""
        with suppress(AssertionError, subprocess.TimeoutExpired):  # Slurm does not answer
            jobs = self.world.hurry()
            held = [job for job in jobs if job.reason.startswith(("JobHeld", "launch failed"))]
            if jobs and not held and time.monotonic() < self.looked_at + AGAIN_S:
                return False
            self.looked_at = time.monotonic()
            states = self.world.states()
            self._say(states)
            if set(states.values()) == {"done"}:
                return True
            if held:
                done = self.world.run("cancel", str(self.world.root.root), "--yes")
                self.log.say("cancel", held=[job.job_id for job in held], exit=done.returncode)
            if held or not jobs or set(states.values()) & OPEN:
                self._submit()
        return False

    def _say(self, states: dict[str, str]) -> None:
        changed = {name: state for name, state in states.items() if self.said.get(name) != state}
        if changed:
            self.log.say("states", **changed)
        self.said = states

    def _submit(self) -> None:
        done = self.world.submit()
        words = (done.stderr.strip().splitlines() or [""])[-1]
        self.log.say("submit", exit=done.returncode, said=words[-200:])
        assert "Traceback" not in done.stderr, done.stderr


def compare(world: World, quiet: World) -> dict[str, bool]:
    """What must be the same, and whether it is."""
    found, wanted = world.numbers(), quiet.numbers()
    assert wanted != Numbers({}, {}, {}) and all(vars(wanted).values()), "the quiet run found something"
    again = world.submit()
    return {
        "losses": found.losses == wanted.losses,
        "weights": found.exports == wanted.exports,
        "records": found.results == wanted.results,
        "tables": tables_without_jobs(world) == tables_without_jobs(quiet),
        "nothing is left half-written": world.leftovers() == [],
        "nothing is left to do": again.returncode == 0 and "nothing to do" in again.stderr,
    }


@contextmanager
def place(log: Log) -> Iterator[tuple[Path, Path | None]]:
    """A short folder, for sockets lie in it; and a small file system where one may be mounted, else None."""
    folder = Path(tempfile.mkdtemp(prefix="hpc-ewc-soak-"))
    small: Path | None = folder / "small"
    folder.joinpath("small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(small)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        log.say("no disk", why=done.stderr.strip())
        small = None
    try:
        yield folder, small
    finally:
        if small is not None:
            subprocess.run(["umount", str(small)], check=True)
        shutil.rmtree(folder)


def soak(minutes: float, seed: int, every_s: float, log: Log, miniature: Path) -> bool:
    """Run it; whether every round ended with the quiet one's numbers."""
    dice = random.Random(seed)
    head = {"python": platform.python_version(), "torch": version("torch"), "machine": platform.platform()}
    log.say("soak", seed=seed, minutes=minutes, every_s=every_s, **head)
    with place(log) as (folder, small):
        cluster = Sandbox(TOOL, folder / "s")
        try:
            quiet = make_world(folder / NAME, None, miniature, experiment="soak.toml")
            done = quiet.submit()
            assert done.returncode == 0, done.stdout + done.stderr
            log.say("quiet", cells=len(quiet.numbers().results))
            cluster.do("up")  # after the mount: nodes see what is mounted when they start
            log.say("up", slurm=cluster.slurm("sinfo", "--version").strip(), nodes=cluster.nodes)
            until, rounds, same = time.monotonic() + 60 * minutes, 0, True
            deck = Deck(dice)
            while rounds == 0 or time.monotonic() < until:
                rounds += 1
                room = (small or folder) / f"round{rounds}"
                room.mkdir()
                world = make_world(room / NAME, cluster, miniature, experiment="soak.toml")
                try:
                    Round(Victim(world, cluster, dice, small), deck, log, until, every_s).run()
                    same = conclude(rounds, world, quiet, log)
                except BaseException as error:
                    log.say("broken", error=f"{type(error).__name__}: {error}"[:2000])
                    keep(world, log)
                    raise
                if not same:
                    keep(world, log)
                    break
                shutil.rmtree(room)
            lines = [line for line in records.read_lines(log.path) if line["what"] == "fault"]
            faults = [line["fault"] for line in lines if "nothing" not in line]
            log.say("end", rounds=rounds, same=same, faults=len(faults), by_kind=dict(sorted(Counter(faults).items())))
            return same
        finally:
            cluster.run("down")


def conclude(number: int, world: World, quiet: World, log: Log) -> bool:
    same = compare(world, quiet)
    lines = [line for path in world.root.root.glob("train/*/metrics.jsonl") for line in records.read_lines(path)]
    attempts = sorted({int(line["restart"]) for line in lines})
    log.say("round", number=number, same=same, jobs=dict(world.submissions()), restarts_in_metrics=attempts)
    return all(same.values())


def keep(world: World, log: Log) -> None:
    """The run folder of a round that went wrong: the one it lies in goes."""
    kept = Path(tempfile.mkdtemp(prefix="hpc-ewc-soak-kept-")) / NAME
    shutil.copytree(world.folder, kept, symlinks=True)
    log.say("kept", folder=str(kept))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long faults go on (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of which fault comes when (default: 1)")
    parser.add_argument(
        "--every", type=float, default=15.0, metavar="S", help="mean seconds between faults (default: 15)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="absent: results/soak/seed-<seed>.jsonl")
    options = parser.parse_args(arguments)
    log = Log(options.log or REPOSITORY / "results" / "soak" / f"seed-{options.seed}.jsonl")
    miniature = REPOSITORY / "data" / "miniature"
    make_miniature(["--folder", str(miniature)])
    return 0 if soak(options.minutes, options.seed, options.every, log, miniature) else 1


if __name__ == "__main__":
    sys.exit(main())
