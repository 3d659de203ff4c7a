"""Injects faults into runs of all stages, and shows what they have cost: ``make soak``."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

# Before jax starts, here and in all processes that train.
os.environ |= {"JAX_PLATFORMS": "cpu", "MLFLOW_DISABLE_TELEMETRY": "true"}

from faults.chain import Chain, Outcome, Space
from faults.kinds import FAULTS
from faults.runs import KINDS, Kit

from wmtp_jax.console import err, out, print_json, table

_AT_ONCE = 2
_FRESH = 0.15
_USUAL = ["baseline", "verifiable", "by time", "rho1", "lora", "critic", "not finite", "reference"]


class Plan(NamedTuple):
    """Faults of one run, in their order."""

    kind: str
    seed: str
    faults: list[str]


def plans(seed: int, *, per_run: int = 9, namespaces: bool = True) -> Iterator[Plan]:
    """Runs without end: all kinds of runs and of faults in turn, each in proportion to its weight."""
    decks = {needs: _deal(needs, f"{seed}/{needs}") for needs in ("", "space", "elastic", "tracked")}
    for number in itertools.count():
        kind, needs, count = _USUAL[number % len(_USUAL)], "", per_run
        if number % 6 == 3:
            kind, needs, count = "elastic", "elastic", 5
        if number % 6 == 4 and namespaces:
            needs, count = "space", 4
        if number % 6 == 5:
            kind, needs, count = "tracked", "tracked", 8
        yield Plan(kind, f"{seed}/{number}", list(itertools.islice(decks[needs], count)))


def _deal(needs: str, seed: str) -> Iterator[str]:
    deck = [name for name, fault in FAULTS.items() if fault.needs == needs for _ in range(fault.weight)]
    generator = random.Random(seed)
    while True:
        generator.shuffle(deck)
        yield from deck


def run_chain(kit: Kit, plan: Plan, folder: Path, *, fresh: float, tell: Any = lambda line: None) -> list[Outcome]:
    """Injects the faults of a plan into one run; what has failed stays in ``folder``."""
    space = Space(folder / "disk") if any(FAULTS[name].needs == "space" for name in plan.faults) else None
    chain = Chain(kit, plan.kind, folder, plan.seed, fresh=fresh, space=space)
    for number, name in enumerate(plan.faults):
        if chain.is_over:
            break
        started = time.monotonic()
        outcome = FAULTS[name].inject(chain, name, len(plan.faults) - number)
        if outcome is not None:
            tell(f"{plan.kind} {plan.seed}: {name}, at step {outcome.reached}, {time.monotonic() - started:.1f} s")
    wrong = chain.finish()
    if chain.kind.numb:
        outcome = chain.note("scores that are NaN", at_most=0)
        outcome.lost, outcome.wrong = 0, list(wrong)
        told = [path for path in folder.glob("*.log") if "skipped:" in path.read_text()]
        if not told:
            outcome.wrong.append(f"no session has said that an update was skipped; see {folder}")
    chain.close(keep=any(outcome.wrong for outcome in chain.outcomes))
    return chain.outcomes


def summary(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row a fault."""
    rows = []
    for name in dict.fromkeys([*FAULTS, *(outcome.fault for outcome in outcomes)]):
        found = [outcome for outcome in outcomes if outcome.fault == name]
        lost = [outcome.lost for outcome in found if outcome.lost is not None]
        exits = [
            outcome.exit_seconds for outcome in found if outcome.exit_seconds is not None and "SIGKILL" not in name
        ]
        rows.append(
            {
                "fault": name,
                "injected": len(found),
                "survived": sum(not outcome.wrong for outcome in found),
                "mean_lost": sum(lost) / len(lost) if lost else None,
                "most_lost": max(lost, default=None),
                "slowest_exit_seconds": max(exits, default=None),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> Any:
    """The rows as a table."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    total = {name: sum(row[name] for row in rows) for name in ("injected", "survived")}
    lines = [
        [
            row["fault"],
            row["injected"],
            row["survived"],
            text(row["mean_lost"], ".1f"),
            text(row["most_lost"], "d"),
            text(row["slowest_exit_seconds"], ".1f"),
        ]
        for row in rows
        if row["injected"]
    ]
    lines.append(["all", total["injected"], total["survived"], "", "", ""])
    columns = ["fault", "times", "survived", "lost", "most", "exit"]
    return table("Faults: steps of work lost (mean, most); slowest exit after a signal (s)", columns, lines)


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    err.print(f"seed {args.seed}; runs and logs are in {folder}", highlight=False, soft_wrap=True)
    probe = Space(folder / "probe")
    probe.close()
    if not probe.works:
        err.print("no user namespaces here: no file system is made full or read-only", highlight=False)
    with contextlib.closing(Kit(folder / "kit")) as kit:
        outcomes = _inject(kit, folder, args.seed, args.faults, namespaces=probe.works)
    rows = summary(outcomes)
    failed = [outcome for outcome in outcomes if outcome.wrong]
    seconds = time.monotonic() - started
    if args.json:
        print_json({"seed": args.seed, "seconds": seconds, "faults": rows, "failed": [vars(o) for o in failed]})
    else:
        out.print(show(rows))
        out.print(f"seed {args.seed}, {seconds / 60:.0f} minutes", highlight=False)
    for outcome in failed:
        reasons = "\n  ".join(outcome.wrong)
        err.print(f"not survived: {outcome.fault}\n  {reasons}", highlight=False, markup=False, soft_wrap=True)
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _inject(kit: Kit, folder: Path, seed: int, faults: int, *, namespaces: bool) -> list[Outcome]:
    """Injects so many faults at least, into two runs at a time."""
    started, lock, done = time.monotonic(), threading.Lock(), itertools.count(1)

    def tell(line: str) -> None:
        with lock:
            err.print(f"{next(done)}/{faults} {line}", highlight=False, soft_wrap=True)

    outcomes: list[Outcome] = []
    running: dict[Future[list[Outcome]], int] = {}
    upcoming = enumerate(plans(seed, namespaces=namespaces))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(kit.reference, KINDS))
        err.print(f"reference runs: {time.monotonic() - started:.0f} s", highlight=False)
        while running or len(outcomes) < faults:
            # Runs in flight are taken to bring what is planned for them.
            while len(running) < _AT_ONCE and len(outcomes) + sum(running.values()) < faults:
                number, plan = next(upcoming)
                place = folder / f"{number:03d}-{plan.kind.replace(' ', '-')}"
                running[pool.submit(run_chain, kit, plan, place, fresh=_FRESH, tell=tell)] = len(plan.faults)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                outcomes += future.result()
                del running[future]
    return outcomes


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many at least (default: 200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the plan")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on standard output")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
