"""Progress of a running submit, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.live import Live

from hpc_ewc.launch.show.rows import Row, describe
from hpc_ewc.launch.show.table import render_table

PLAIN_INTERVAL_S = 30.0


class Display(AbstractContextManager["Display"]):
    """A live status table on a terminal; elsewhere a line per change of state, and progress twice a minute."""

    def __init__(self, *, force_plain: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.plain = force_plain or not self.console.is_terminal
        self.live: Live | None = None
        self.states: dict[str, str] = {}
        self.printed_at = time.monotonic()

    def __enter__(self) -> Display:
        if not self.plain:
            # transient: the table disappears at the end and leaves the screen as it was
            self.live = Live(console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        """Print one line that stays on the screen."""
        if self.plain:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
            sys.stderr.flush()
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def update(self, rows: Sequence[Row]) -> None:
        """Show the current status."""
        if self.live is not None:
            self.live.update(render_table(rows, self.console.width, limit=max(8, self.console.height - 6)))
        elif self.plain:
            self._print_changes(rows)

    def _print_changes(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if self.states.get(row.id, row.state) != row.state:
                words = " ".join(filter(None, (row.stage, row.run, row.state)))
                self.say(f"{words}: {row.note}" if row.note else words)
                self.printed_at = time.monotonic()
            self.states[row.id] = row.state
        if time.monotonic() - self.printed_at > PLAIN_INTERVAL_S:
            self.printed_at = time.monotonic()
            for row in rows:
                if row.state == "running" and row.progress is not None:
                    self.say(f"{row.stage} {row.run} {describe(row.progress)}")
