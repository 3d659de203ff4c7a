"""Rows and batches: read when they are asked for, in an order of the seed alone, by the process they belong to."""

from collections import Counter
from pathlib import Path

import grain
import jax
import numpy as np
import pytest

from wmtp_jax.data.batches import RowSource, batch_numbers, training_batches
from wmtp_jax.data.store import Split, open_split
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import batch_sharding, local_rows, place_rows
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.objective import make_objective
from wmtp_jax.training.stages import STAGES
from wmtp_jax.training.validation import make_eval_step

ROOT = Path(__file__).parent.parent.parent
LENGTH = 160
SIZES = {"rows_per_step": 8, "accumulation": 2, "seed": 3}


@pytest.fixture(scope="module")
def train(tiny_data) -> Split:
    return open_split(tiny_data, "train")


@pytest.fixture(scope="module")
def source(train) -> RowSource:
    return RowSource(train, np.arange(len(train)), LENGTH, packing=True, seed=0, outcomes=True)


@pytest.fixture(scope="module")
def sharding():
    return batch_sharding(make_mesh((2, 2, 1)), batch_axis=1)


def pairs_of(split: Split) -> np.ndarray:
    """(N, 2): of each problem a correct and an incorrect solution."""
    return np.array(
        [
            [np.flatnonzero((split.problem == p) & (split.is_correct == kind))[0] for kind in (True, False)]
            for p in range(split.n_problems)
        ]
    )


@pytest.mark.parametrize("packing", [True, False])
def test_rows_are_the_documents_of_the_store(train, packing: bool):
    source = RowSource(train, np.arange(len(train)), LENGTH, packing=packing, seed=0, outcomes=True)
    rows = source[np.arange(len(source))]
    seen = []
    for number in range(len(source)):
        documents = source.documents(number)
        for place, document in enumerate(documents, start=1):
            at = rows.segment_ids[number] == place
            tokens, n_prompt, outcome = train.tokens(document)
            np.testing.assert_array_equal(rows.tokens[number, at], tokens)
            np.testing.assert_array_equal(rows.loss_mask[number, at], np.arange(len(tokens)) >= n_prompt)
            assert set(rows.outcomes[number, at]) == {outcome}
        assert rows.segment_ids[number].max() == len(documents)
        seen += documents.tolist()
    assert sorted(seen) == list(range(len(train)))
    assert source.n_tokens == rows.n_tokens == train.lengths.sum()
    assert source.fill == pytest.approx(np.mean(rows.segment_ids > 0))
    assert sorted(source.lengths(np.arange(len(source)))) == sorted(train.lengths)
    assert source.documents_per_row == rows.segment_ids.max() == (1 if not packing else source.documents_per_row)
    assert packing == (len(source) < len(train) / 2)


def test_any_shape_of_numbers_and_rows_of_padding(source):
    whole = source[np.array([[0, 3], [-1, 1]])]
    assert whole.tokens.shape == (2, 2, LENGTH)
    for field, one in zip(whole[:4], source[3][:4], strict=True):
        np.testing.assert_array_equal(field[0, 1], one)
        assert not field[1, 0].any()
    assert whole.scores is None


def test_nothing_is_read_before_it_is_asked_for(train, monkeypatch):
    read = []
    monkeypatch.setattr(
        Split, "tokens", lambda self, row, tokens=Split.tokens: (read.append(int(row)), tokens(self, row))[1]
    )
    source = RowSource(train, np.arange(len(train)), LENGTH, packing=True, seed=0)
    assert not read
    source[5]
    assert read == source.documents(5).tolist()


def test_scores_lie_beside_their_tokens(train):
    source = RowSource(train, np.arange(len(train)), LENGTH, packing=True, seed=0)
    source.scores = lambda number: np.arange(train.lengths[number], dtype=np.float32) + 1000 * number
    row = source[2]
    expected = np.concatenate([source.scores(number) for number in source.documents(2)])
    np.testing.assert_array_equal(row.scores[: len(expected)], expected)
    assert not row.scores[len(expected) :].any()


def test_the_sides_of_a_pair_stay_together(train):
    source = RowSource(train, pairs_of(train), LENGTH, packing=True, seed=0, outcomes=True)
    assert source.documents_per_row > 1
    seen = []
    for number in range(0, len(source), 2):
        above, below = source.documents(number), source.documents(number + 1)
        np.testing.assert_array_equal(train.problem[above], train.problem[below])
        assert train.is_correct[above].all()
        assert not train.is_correct[below].any()
        seen += [*above, *below]
    assert sorted(seen) == sorted(pairs_of(train).reshape(-1))
    batches = batch_numbers(len(source), **SIZES, rows_per_unit=2)
    for step in range(3 * len(source) // 8):
        for micro in batches[step]:
            np.testing.assert_array_equal(micro[0::2] + 1, micro[1::2])
            assert (micro[0::2] % 2 == 0).all()


def test_rows_hold_documents_of_one_bin(train):
    bins = train.problem % 3
    source = RowSource(train, np.arange(len(train)), LENGTH, packing=True, seed=0, bins=bins)
    assert len(source.bins) == len(source)
    assert set(source.bins) == {0, 1, 2}
    for number in range(len(source)):
        assert set(bins[source.documents(number)]) == {source.bins[number]}
    assert sorted(np.concatenate([source.documents(n) for n in range(len(source))])) == list(range(len(train)))


def test_the_digest_says_which_examples_stand_where(train):
    def digest(chosen, seed: int = 0, packing: bool = True) -> str:
        return RowSource(train, chosen, LENGTH, packing=packing, seed=seed).digest()

    everything = np.arange(len(train))
    same = digest(everything)
    assert same == digest(everything.copy())
    others = [digest(everything[1:]), digest(everything, seed=1), digest(everything, packing=False)]
    assert len({same, *others}) == 4


def test_every_epoch_has_each_row_once_in_another_order():
    batches = batch_numbers(24, **SIZES)
    epochs = [np.concatenate([batches[step].reshape(-1) for step in range(3 * e, 3 * e + 3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_array_equal(batches[7], batch_numbers(24, **SIZES)[7])
    assert batches[0].shape == (2, 4)
    # How a step's rows are divided into micro-batches does not change which they are.
    np.testing.assert_array_equal(batches[5].reshape(-1), batch_numbers(24, **SIZES | {"accumulation": 1})[5][0])


def test_batches_start_at_any_step_and_resume_exactly(source, sharding):
    def batches(first_step: int):
        return training_batches(source, sharding, **SIZES, first_step=first_step, last_step=20)

    whole = list(batches(0))
    assert len(whole) == 20
    numbers = batch_numbers(len(source), **SIZES)
    for step, batch in enumerate(whole):
        for ours, theirs in zip(batch.rows[:4], source[numbers[step]][:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(batch.lengths, source.lengths(numbers[step]))
        assert batch.rows.tokens.sharding == sharding
    per_epoch = len(source) / SIZES["rows_per_step"]
    middle = next(step for step in range(3, 20) if step % per_epoch > 1)  # in the middle of an epoch
    rest = batches(middle)
    assert_same(list(rest), whole[middle:])
    interrupted = batches(0)
    for _ in range(middle):
        next(interrupted)
    state = interrupted.get_state()
    interrupted.close()
    resumed = batches(0)
    next(resumed)
    resumed.set_state(state)
    assert grain.experimental.get_next_index(resumed) == middle
    assert_same([next(resumed)], [whole[middle]])
    resumed.close()


def assert_same(ours: list, theirs: list) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_curriculum_is_read_in_its_order(source, sharding):
    order = np.arange(len(source))[::-1].repeat(2)[:16]
    batches = list(training_batches(source, sharding, **SIZES, first_step=0, last_step=2, order=order))
    np.testing.assert_array_equal(batches[1].rows.tokens, source[order[8:].reshape(2, 4)].tokens)


class OfProcess:
    """The part of a sharding that one of several processes sees: its own share of the devices."""

    def __init__(self, sharding, process: int, n_processes: int):
        self._sharding, self._process, self._n = sharding, process, n_processes

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict:
        indices = list(self._sharding.devices_indices_map(shape).items())
        each = len(indices) // self._n
        return dict(indices[self._process * each : (self._process + 1) * each])


@pytest.mark.parametrize("n_processes", [1, 2, 4])
@pytest.mark.parametrize("mesh", [(2, 2, 1), (1, 2, 2)])
def test_processes_read_the_same_rows_together_and_each_only_its_own(source, mesh, n_processes: int):
    sharding = batch_sharding(make_mesh(mesh), batch_axis=1)
    examples = Counter()
    for step in range(len(source) // 8):  # an epoch
        numbers = batch_numbers(len(source), **SIZES)[step]
        indices = sharding.devices_indices_map(numbers.shape)
        read = set()
        for process in range(n_processes):
            mine = []

            def rows_of(chosen, mine=mine):
                mine.extend(chosen.reshape(-1).tolist())
                return source[chosen]

            of_devices = local_rows(rows_of, numbers, OfProcess(sharding, process, n_processes))
            assert len(mine) == len(set(mine))  # devices that have the same rows share them
            assert len(mine) == numbers.size // min(n_processes, mesh[0] * mesh[1])
            for device, rows in of_devices.items():
                np.testing.assert_array_equal(rows.tokens, source[numbers[indices[device]]].tokens)
            read.update(mine)
        assert read == set(numbers.reshape(-1).tolist())
        for row in read:
            examples.update(source.documents(row).tolist())
    assert set(examples.values()) == {1}
    assert len(examples) > 0.8 * len(source.chosen)  # all but the rows that fill no step


def test_placed_rows_are_the_rows(source):
    for mesh in ((4, 1, 1), (1, 2, 2)):
        numbers = np.array([3, 0, -1, 5])
        placed = place_rows(source.__getitem__, numbers, batch_sharding(make_mesh(mesh)))
        for ours, theirs in zip(placed[:4], source[numbers][:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert placed.scores is None


@pytest.mark.parametrize("stage", ["baseline", "critic"])
def test_losses_do_not_depend_on_packing(train, stage: str):
    """Summed over all documents, packed or one a row: attention, positions and targets stay inside each."""
    config = ModelConfig(
        dim=32, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=64, n_future_tokens=2, vocab_size=300, value_head="linear"
    )
    mesh = make_mesh((-1, 1, 1))
    params = store.random_params(config, 0, "float32", mesh)
    settings = load_settings(ROOT / f"configs/{stage}/micro.yaml")
    sums = []
    for packing in (True, False):
        source = RowSource(train, np.arange(24), LENGTH, packing=packing, seed=0, outcomes=True)
        objective = make_objective(
            STAGES[stage], settings, config.n_future_tokens, total_steps=1, n_documents=source.documents_per_row
        )
        graphdef, _ = store.build(config, packed=packing)
        step = jax.jit(make_eval_step(graphdef, objective))
        sums.append(step(params, source[np.arange(len(source))])[0])
    assert float(sums[0].documents if stage == "critic" else sums[0].targets_n[0]) > 20
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *sums)


def test_a_step_may_be_a_single_row():
    numbers = batch_numbers(10, rows_per_step=1, accumulation=1, seed=0)
    first, second = ([int(numbers[epoch * 10 + i][0, 0]) for i in range(10)] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert len(numbers[:25]) == 25
