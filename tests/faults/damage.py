"""Harm to the files of a saved step, while nothing runs."""

from __future__ import annotations

import signal
from pathlib import Path

from faults.chain import Chain, Fault, Outcome, trained
from faults.runs import EVERY

from wmtp_jax.training.saved import step_directory


def damage(what: str, files: str, *, harmless: bool = False) -> Fault:
    """A fault: harm to a file of the newest step.

    Args:
      what: ``cut``, ``remove``, ``flip``.
      files: pattern of the files of which one is taken, among those with contents.
      harmless: the step is used nevertheless, as one of an earlier version.
    """

    def inject(chain: Chain, name: str, left: int) -> Outcome | None:
        # A session that tells what earlier faults have cost, and makes a step of its own.
        process, ends = chain.start(), chain.random.choice((signal.SIGTERM, signal.SIGKILL))
        if files.startswith("metrics"):
            ends = signal.SIGKILL  # a signal that asks leaves a step without validation
        before = chain.saved[-1]
        if ends == signal.SIGTERM:
            chain.wait_for(process, lambda: trained(process) > 0)
        else:
            chain.wait_for(process, lambda: trained(process) > 0 and chain.saved[-1] != before)
        process.signal(ends)
        process.wait(60)
        chain.settle(process)
        if chain.is_over or chain.saved[-1] == 0:
            return None
        *before, newest = chain.saved
        folder = step_directory(chain.run, newest)
        paths = sorted(path for path in folder.glob(files) if path.is_file() and path.stat().st_size)
        if not paths:
            return None  # a step that was not validated has no metrics
        _harm(chain.random.choice(paths), what, chain)
        if harmless:
            return chain.note(name, at_most=2 * EVERY)
        says = rf"checkpoints/{newest} is damaged: .* It is kept as {newest}\.damaged"
        return chain.note(name, at_most=3 * EVERY, stands=before[-1], says=says)

    return inject


def _harm(path: Path, what: str, chain: Chain) -> None:
    content = bytearray(path.read_bytes())
    place = chain.random.randrange(len(content))
    if what == "remove":
        path.unlink()
    elif what == "cut":
        path.write_bytes(content[:place])
    else:
        content[place] ^= 1 << chain.random.randrange(8)
        path.write_bytes(content)
