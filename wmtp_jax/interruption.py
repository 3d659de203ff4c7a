"""SIGTERM and SIGINT: the first asks for an orderly end, a second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from wmtp_jax.console import err

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO_S = 0.2  # a launcher may pass on a signal that its whole group has got already


class Interrupted(KeyboardInterrupt):
    """A signal has come while there was nothing to finish."""


class Interruption:
    """What signals ask of a command, while it is a context (in the main thread).

    `Interrupted` is raised in the main thread; after ``only_ask()`` only ``requested`` is set. A
    second signal ends the process, whatever it does: files are written so that this harms none.

    Attributes:
      requested: name of the signal that has asked for an end, e.g. ``"SIGTERM"``; None: none has.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._only_asks = self._raised = False
        self._echoes = 0  # signals of ours, which are no second ones
        self._watching: threading.Thread | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            return self
        # Python's handlers wait for the main thread, which may stand in a compilation or a step for long; what the
        # system writes into this pipe is read by a thread at once.
        self._read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._read, True)
        self._write = write
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._watching = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching is None:
            return
        sys.unraisablehook = self._hook_before
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # the thread sees the end of the pipe
        self._watching.join()
        os.close(self._read)

    def only_ask(self) -> None:
        """From now on a signal raises nothing: what runs looks at ``requested``, and ends in order."""
        self._only_asks = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = self.requested or signal.Signals(number).name
        if not self._only_asks and not self._raised:
            self._raised = True
            raise Interrupted(self.requested)

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Raises an `Interrupted` again that has hit a callback of the garbage collector, which drops exceptions."""
        if not isinstance(lost.exc_value, Interrupted):
            self._hook_before(lost)
            return
        self._raised, self._echoes = False, self._echoes + 1
        number = signal.Signals[str(lost.exc_value)]
        threading.Timer(_ECHO_S / 10, os.kill, (os.getpid(), number)).start()

    def _watch(self) -> None:
        first: float | None = None
        while got := os.read(self._read, 1):
            if got[0] not in _SIGNALS:
                continue
            if self._echoes:
                self._echoes -= 1
                continue
            now = time.monotonic()
            if first is not None and now - first > _ECHO_S:
                os.write(2, b"\na second signal: ended at once; the last checkpoint stands\n")
                os._exit(128 + got[0])
            if first is None:
                first = now
                self.requested = self.requested or signal.Signals(got[0]).name
                what = "finishing the running step, then saving" if self._only_asks else "ending"
                err.print(f"{self.requested}: {what} (a second signal ends it at once)", soft_wrap=True)
