"""A watchdog that ends a process that makes no progress, after printing the stacks of its threads."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

BACKSTOP_S = 30.0


class Watchdog:
    """Prints all stacks and exits with 1 when `beat` was not called for `timeout_s`.

    It has two clocks: a Python thread, which can also write failed.json, and faulthandler's C thread a little later,
    for a process that hangs with the interpreter's lock held, as a collective inside a driver may.

    Args:
        timeout_s: longest time between two beats.
        on_timeout: called with the message before the process exits.
    """

    def __init__(self, timeout_s: float, on_timeout: Callable[[str], None]) -> None:
        self.timeout_s = timeout_s
        self._on_timeout = on_timeout
        self._last, self._doing = time.monotonic(), "starting"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        self.beat("starting")

    def beat(self, doing: str) -> None:
        """Resets both clocks and notes what the process does next, for the message."""
        self._last, self._doing = time.monotonic(), doing
        if hasattr(sys.stderr, "fileno"):
            faulthandler.dump_traceback_later(self.timeout_s + BACKSTOP_S, exit=True)

    def close(self) -> None:
        """Stops both clocks."""
        faulthandler.cancel_dump_traceback_later()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.timeout_s / 4)):
            silent = time.monotonic() - self._last
            if silent > self.timeout_s:
                message = f"no progress for {silent:.0f} s (train.watchdog_s = {self.timeout_s:g}) while {self._doing}"
                sys.stderr.write(f"WATCHDOG: {message}; stacks of all threads follow\n")
                sys.stderr.flush()
                faulthandler.dump_traceback(all_threads=True)
                self._on_timeout(message)
                os._exit(1)
