"""The short form of ``make soak``: each kind of fault once, in runs that end as if nothing had happened."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from faults.chain import Outcome, Space
from faults.runs import Kit, differences
from faults.soak import Plan, plans, run_chain, summary

from wmtp_jax.interruption import Interrupted, Interruption
from wmtp_jax.training.saved import CHECKSUMS_FILE, find_damage, saved_steps, step_directory

CHAINS = {
    "baseline": [
        "SIGTERM before training begins",
        "SIGKILL as run.json is written",
        "SIGKILL in a save, before commit",
        "SIGTERM at some instant",
        "full disk over a save",
        "a second process",
        "SIGKILL as metrics are shortened",
        "weights: a byte flipped",
        "SIGKILL at some instant",
        "SIGKILL over an owed validation",
    ],
    "verifiable": [
        "SIGINT at some instant",
        "SIGKILL in an accumulation",
        "a second SIGTERM in a save",
        "optimizer: a file cut short",
        "SIGKILL in a validation",
    ],
    "elastic": ["restart on other devices", "restart on other devices"],
}


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Kit:
    return Kit(tmp_path_factory.mktemp("faults"))


def wrong(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.fault}: {reason}" for outcome in outcomes for reason in outcome.wrong]


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(kit: Kit, tmp_path: Path, name: str):
    outcomes = run_chain(kit, Plan(name, "short", CHAINS[name]), tmp_path / "chain", fresh=0.0)
    assert wrong(outcomes) == []
    assert [outcome.fault for outcome in outcomes] == CHAINS[name]
    lost = {row["fault"]: row["most_lost"] for row in summary(outcomes)}
    assert all(lost[fault] == 0 for fault in CHAINS[name] if fault.startswith(("SIGTERM", "SIGINT", "full disk")))


def test_a_file_system_that_is_full_or_read_only(kit: Kit, tmp_path: Path):
    probe = Space(tmp_path / "probe")
    probe.close()
    if not probe.works:
        pytest.skip("no user namespaces here")
    faults = ["full file system", "read-only file system at start"]
    outcomes = run_chain(kit, Plan("baseline", "short", faults), tmp_path / "chain", fresh=0.0)
    assert wrong(outcomes) == []
    assert [outcome.fault for outcome in outcomes] == faults


def test_every_flipped_byte_of_the_checksums_is_noticed(kit: Kit, tmp_path: Path):
    reference = kit.reference("baseline")
    folder = tmp_path / "step"
    shutil.copytree(step_directory(reference, saved_steps(reference)[-1]), folder)
    sound = (folder / CHECKSUMS_FILE).read_bytes()
    assert find_damage(folder) is None
    for place in range(0, len(sound), 7):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << place % 8
        (folder / CHECKSUMS_FILE).write_bytes(flipped)
        assert find_damage(folder) is not None, f"byte {place}"


def test_the_comparison_sees_a_difference(kit: Kit, tmp_path: Path):
    """A run of other settings is another run: else the other tests would show nothing."""
    reference = kit.reference("baseline")
    assert differences(reference, reference, elastic=False) == []
    other = kit.reference("by time")
    assert differences(other, reference, elastic=False) == []  # saves in between change nothing
    shutil.copytree(reference, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 20,', '"step": 20, "train/extra": 1.0,', 1))
    assert differences(tmp_path / "run", reference, elastic=False) == ["metrics.jsonl has other lines or names"]


def test_a_signal_outlives_a_garbage_collection():
    """Python drops what is raised in ``__del__`` and in callbacks of the collector."""

    class Interrupting:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler runs here

    def set_up():
        with Interruption():
            Interrupting()
            time.sleep(5)

    with pytest.raises(Interrupted, match="SIGTERM"):
        set_up()


def test_a_seed_makes_the_same_plan():
    one, other = plans(7), plans(7)
    drawn = [next(one) for _ in range(30)]
    assert drawn == [next(other) for _ in range(30)]
    assert {plan.kind for plan in drawn} >= {
        "baseline",
        "critic",
        "verifiable",
        "reference",
        "rho1",
        "lora",
        "elastic",
        "tracked",
    }
