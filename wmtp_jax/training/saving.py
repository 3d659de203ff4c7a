"""When a run saves, and what happens when a save fails: training goes on, and it is tried again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from wmtp_jax.errors import Failure
from wmtp_jax.parallel.distributed import Meeting, is_first
from wmtp_jax.training.checkpoints import Checkpoints, SaveFailure
from wmtp_jax.training.run import Run
from wmtp_jax.training.saved import saved_steps

_RETRY_S = 60.0  # a save that fails costs the loop little, a machine that is lost much
_LAST_PAUSES_S = (5.0, 15.0, 40.0)  # the last save is tried again at once: nothing else is left to do


class SaveClock:
    """Says after which steps to save beside those of the schedule: by time, and again after a failure.

    Args:
      run: the run.
      checkpoints: where it saves.
      tell: takes a sentence for people.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, tell: Callable[[str], None]):
        minutes = run.settings.checkpoint.save_every_minutes
        self._every = math.inf if minutes is None else 60 * minutes
        self._run, self._checkpoints, self._tell = run, checkpoints, tell
        self._meeting = Meeting("save")
        self.saved()

    def saved(self) -> None:
        """Starts the clock again: a save has begun."""
        self._next = time.monotonic() + self._every

    def due(self, step: int) -> bool:
        """Whether to save after this step; called once after the start of every step. Tells what has failed."""
        if failure := self._checkpoints.failure():
            self._next = min(self._next, time.monotonic() + _RETRY_S)
            again = f"it is tried again in {_RETRY_S:.0f} s or at the next save"
            self._tell(f"{self._describe(failure)}; training goes on, and {again}")
        # The clock of process 0 counts for all.
        if is_first() and time.monotonic() >= self._next and not self._checkpoints.is_saving:
            self._next = math.inf
            self._meeting.ask(step)
        return self._meeting.due(step)

    def settle(self, step: int, save: Callable[[], None], *, hurry: bool) -> None:
        """Waits until the last ``step`` is on the disk; ``save`` starts saving it again where that fails.

        Raises:
          Failure: it cannot be saved. With ``hurry`` it is not tried for long.
        """
        for pause in (*(_LAST_PAUSES_S[:1] if hurry else _LAST_PAUSES_S), None):
            self._checkpoints.wait()
            failure = self._checkpoints.failure()
            if failure is None:
                return
            if failure.step != step:  # one before it, which does not count any more
                self._tell(self._describe(failure))
                return
            if pause is None:
                raise Failure(
                    f"{self._describe(failure)}: what was trained after that is lost. Make room (or mend the volume) "
                    "and give the same command: it goes on from the last good checkpoint, or begins anew without one"
                )
            self._tell(f"{self._describe(failure)}; it is tried again in {pause:.0f} s")
            time.sleep(pause)
            save()

    def _describe(self, failure: SaveFailure) -> str:
        steps = saved_steps(self._run.directory)
        stands = f"the last good checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        return f"step {failure.step} could not be saved in {self._run.directory} ({failure.reason}); {stands}"
