"""Which samples: counts, shares, pairs and reports, against plain counting over small indices."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wmtp_jax.console import Console
from wmtp_jax.data.sample import apportion, assign_bins, draw, draw_samples
from wmtp_jax.data.sample_report import BinReport, LeftOut, sample_table
from wmtp_jax.errors import UserError
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.inputs import draw_examples
from wmtp_jax.training.stages import STAGES

ROOT = Path(__file__).parent.parent.parent
BINS = {"low": (1, 3), "medium": (4, 7), "high": (8, 11)}
MAX_LENGTH = 40
METHODS = st.sampled_from(["correct", "balanced", "pairs"])


class Row(NamedTuple):
    problem: int
    correct: bool
    difficulty: int
    n_prompt: int
    n_response: int

    @property
    def length(self) -> int:
        return self.n_prompt + self.n_response


class Index:
    """The arrays of a split, and nothing to read texts or tokens with."""

    path = Path("data/train")

    def __init__(self, rows: list[Row], name: str = "train"):
        self.rows, self.name = rows, name
        self.problem = np.array([row.problem for row in rows], np.int32)
        self.is_correct = np.array([row.correct for row in rows], bool)
        self.difficulty = np.array([row.difficulty for row in rows], np.int64)
        self.n_prompt = np.array([row.n_prompt for row in rows], np.int32)
        self.lengths = np.array([row.length for row in rows], np.int32)
        self.n_problems = max(row.problem for row in rows) + 1

    def __len__(self) -> int:
        return len(self.rows)


INDICES = st.builds(
    Index,
    st.lists(
        st.builds(Row, st.integers(0, 5), st.booleans(), st.integers(0, 12), st.integers(1, 9), st.integers(1, 36)),
        min_size=1,
        max_size=60,
    ),
)


def random_index(n: int = 600, seed: int = 0) -> Index:
    rng = np.random.default_rng(seed)
    columns = (rng.integers(0, 20, n), rng.random(n) < 0.5, rng.integers(1, 12, n))
    return Index([Row(*map(int, row), 5, int(rng.integers(1, 36))) for row in zip(*columns, strict=True)])


def bin_name(row: Row) -> str | None:
    return next((name for name, (low, high) in BINS.items() if low <= row.difficulty <= high), None)


def may_be_drawn(index: Index, method: str, binned: bool) -> tuple[list[int], LeftOut]:
    """Row numbers that a method may draw, by plain counting, and the others."""
    rows, reasons = index.rows, Counter()
    found = []
    for number, row in enumerate(rows):
        if method == "correct" and not row.correct:
            continue
        reason = "too_long" if row.length > MAX_LENGTH else "in_no_bin" if binned and not bin_name(row) else None
        reasons[reason] += 1
        if reason is None:
            found.append(number)
    kinds = defaultdict(set)
    for number in found:
        kinds[rows[number].problem].add(rows[number].correct)
    alone = {problem for problem, both in kinds.items() if len(both) == 1 and method != "correct"}
    usable = [number for number in found if rows[number].problem not in alone]
    return usable, LeftOut(reasons["too_long"], reasons["in_no_bin"], len(found) - len(usable), len(alone))


def most_pairs(index: Index, usable: list[int], width: int | None, limit: int | None) -> int:
    """Size of a maximum matching inside each problem, by augmenting paths."""

    def fits(a: Row, b: Row) -> bool:
        return a.problem == b.problem and (width is None or a.n_response // width == b.n_response // width)

    rows = index.rows
    total = 0
    for problem in {rows[number].problem for number in usable}:
        of_problem = [number for number in usable if rows[number].problem == problem]
        partner: dict[int, int] = {}

        def augment(left: int, seen: set[int], of_problem=of_problem, partner=partner) -> bool:
            for right in of_problem:
                if rows[right].correct or right in seen or not fits(rows[left], rows[right]):
                    continue
                seen.add(right)
                if right not in partner or augment(partner[right], seen):
                    partner[right] = left
                    return True
            return False

        found = sum(augment(left, set()) for left in of_problem if rows[left].correct)
        total += found if limit is None else min(found, limit)
    return total


@settings(max_examples=150, deadline=None)
@given(INDICES, st.booleans(), st.data())
def test_correct_solutions(index: Index, binned: bool, data: st.DataObject):
    usable, left_out = may_be_drawn(index, "correct", binned)
    common = {"max_length": MAX_LENGTH, "bins": BINS if binned else None}
    if not usable:
        with pytest.raises(UserError, match=r"no correct solutions|longer than dataset.max_length 40|in any bin"):
            draw_samples(index, "correct", None, 0, "n", **common)
        return
    everything, report = draw_samples(index, "correct", None, 0, "n", **common)
    assert everything.tolist() == usable
    assert report.left_out == left_out
    assert report.candidates == index.is_correct.sum()
    n = data.draw(st.integers(1, len(usable)))
    chosen, report = draw_samples(index, "correct", n, 0, "n", **common)
    assert len(set(chosen)) == n
    assert chosen.tolist() == sorted(chosen)
    assert set(chosen) <= set(usable)
    lengths = sorted(index.rows[i].length for i in chosen)
    assert (report.tokens["min"], report.tokens["max"]) == (lengths[0], lengths[-1])
    assert report.tokens["mean"] == pytest.approx(sum(lengths) / n)
    assert report.tokens["median"] == (lengths[(n - 1) // 2] + lengths[n // 2]) / 2
    assert (report.correct, report.incorrect, report.pairs) == (n, 0, 0)
    assert report.problems == len({index.rows[i].problem for i in chosen})
    in_bins = Counter(bin_name(index.rows[i]) for i in chosen)
    assert report.bins == ({name: BinReport(None, in_bins[name], 0) for name in BINS} if binned else {})


@settings(max_examples=150, deadline=None)
@given(INDICES, st.sampled_from([0.1, 0.5, 0.75]), st.integers(1, 40))
def test_balanced(index: Index, ratio: float, n: int):
    usable, left_out = may_be_drawn(index, "balanced", binned=False)
    common = {"max_length": MAX_LENGTH, "correct_ratio": ratio}
    n_correct = sum(index.rows[i].correct for i in usable)
    if not usable:
        with pytest.raises(UserError, match=r"both correct and incorrect solutions|longer than dataset.max_length 40"):
            draw_samples(index, "balanced", None, 0, "n", **common)
        return
    if round(n * ratio) > n_correct or n - round(n * ratio) > len(usable) - n_correct:
        both = rf"\({n_correct} correct, {len(usable) - n_correct} incorrect\)"
        with pytest.raises(UserError, match=rf"n {n} with .*correct_ratio {ratio} asks for .*, but there are .*{both}"):
            draw_samples(index, "balanced", n, 0, "n", **common)
    else:
        chosen, report = draw_samples(index, "balanced", n, 0, "n", **common)
        assert len(set(chosen)) == n
        assert chosen.tolist() == sorted(chosen)
        assert set(chosen) <= set(usable)
        assert index.is_correct[chosen].sum() == report.correct == round(n * ratio)
        assert report.incorrect == n - round(n * ratio)
        assert report.left_out == left_out
    most, _ = draw_samples(index, "balanced", None, 0, "n", **common)
    for kind, count in ((True, n_correct), (False, len(usable) - n_correct)):
        assert (index.is_correct[most] == kind).sum() <= count
    with pytest.raises(UserError, match="but there are"):  # it was the most there is
        draw_samples(index, "balanced", len(most) + 2 + int(2 / min(ratio, 1 - ratio)), 0, "n", **common)


@settings(max_examples=200, deadline=None)
@given(INDICES, st.sampled_from([None, 1, 8, 16]), st.sampled_from([None, 1, 2]), st.data())
def test_pairs(index: Index, width: int | None, limit: int | None, data: st.DataObject):
    usable, left_out = may_be_drawn(index, "pairs", binned=False)
    most = most_pairs(index, usable, width, limit)
    common = {"max_length": MAX_LENGTH, "length_bin_tokens": width, "max_pairs_per_problem": limit}
    if not most:
        with pytest.raises(UserError, match=r"no pairs|both correct and incorrect|longer than dataset.max_length 40"):
            draw_samples(index, "pairs", None, 0, "n", **common)
        return
    assert len(draw_samples(index, "pairs", None, 0, "n", **common)[0]) == most
    n = data.draw(st.integers(1, most))
    pairs, report = draw_samples(index, "pairs", 2 * n, 0, "n", **common)
    assert pairs.shape == (n, 2)
    assert len(set(pairs.reshape(-1))) == 2 * n
    assert set(pairs.reshape(-1)) <= set(usable)
    of_problem = Counter()
    for good, bad in ((index.rows[a], index.rows[b]) for a, b in pairs):
        assert (good.correct, bad.correct) == (True, False)
        assert good.problem == bad.problem
        assert width is None or good.n_response // width == bad.n_response // width
        of_problem[good.problem] += 1
    assert limit is None or max(of_problem.values()) <= limit
    assert (report.correct, report.incorrect, report.pairs, report.problems) == (n, n, n, len(of_problem))
    lost = 2 * (most_pairs(index, usable, None, None) - most_pairs(index, usable, width, None))
    assert report.left_out == replace(left_out, unpaired_by_length=lost)
    with pytest.raises(UserError, match=rf"half of n asks for {most + 1}, but there are {most} pairs"):
        draw_samples(index, "pairs", 2 * most + 2, 0, "n", **common)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_apportion(data: st.DataObject):
    n_bins = data.draw(st.integers(1, 5))
    weights = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
    shares = np.array(data.draw(st.lists(weights, min_size=n_bins, max_size=n_bins)))
    assume(shares.any())
    there = np.array(data.draw(st.lists(st.integers(0, 50), min_size=n_bins, max_size=n_bins))) * (shares > 0)
    n = data.draw(st.integers(0, int(there.sum())))
    asked, taken = apportion(n, shares, there)
    assert asked.sum() == taken.sum() == n
    assert np.all(np.abs(asked - n * shares / shares.sum()) < 1 + 1e-9)
    assert not asked[shares == 0].any()
    assert np.all(taken <= there)
    assert np.all(taken >= np.minimum(asked, there))
    if (asked <= there).all():
        assert taken.tolist() == asked.tolist()


def test_apportion_fills_by_shares():
    asked, taken = apportion(100, np.array([0.5, 0.3, 0.2]), np.array([10, 200, 200]))
    assert asked.tolist() == [50, 30, 20]
    assert taken.tolist() == [10, 54, 36]  # the 40 that are missing, as 3 to 2
    asked, taken = apportion(100, np.array([0.5, 0.3, 0.2]), np.array([10, 40, 60]))
    assert taken.tolist() == [10, 40, 50]  # the second is used up on the way


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99), METHODS, st.lists(st.integers(1, 9), min_size=3, max_size=3), st.data())
def test_shares_of_difficulties(seed: int, method: str, weights: list[int], data: st.DataObject):
    """Of each kind, or of the pairs: as asked, and filled up as `apportion` says."""
    index = random_index(150, seed)
    usable, left_out = may_be_drawn(index, method, binned=True)
    common = {"max_length": MAX_LENGTH, "bins": BINS}
    if method == "pairs":
        pool = draw_samples(index, method, None, 0, "n", **common)[0][:, 0].tolist()
        pools, per_unit = [pool], 2
    else:
        pools = [[i for i in usable if index.rows[i].correct == kind] for kind in (True, False)]
        pools, per_unit = [pool for pool in pools if pool], 1
    n_units = data.draw(st.integers(1, min(map(len, pools))))  # of each kind, or pairs
    wanted = dict(zip(BINS, map(float, weights), strict=True))
    n = n_units * per_unit * len(pools)
    chosen, report = draw_samples(index, method, n, 0, "n", weights=wanted, **common)
    assert len(set(chosen.reshape(-1))) == chosen.size == n
    assert report.left_out == left_out
    first = chosen[:, 0] if method == "pairs" else chosen
    asked, filled, got = (np.zeros(3, int) for _ in range(3))
    for pool in pools:
        there = Counter(bin_name(index.rows[i]) for i in pool)
        of_pool = Counter(bin_name(index.rows[i]) for i in first if index.is_correct[i] == index.is_correct[pool[0]])
        asked_of, taken = apportion(n_units, np.array(weights, float), np.array([there[name] for name in BINS]))
        assert [of_pool[name] for name in BINS] == taken.tolist()
        got += per_unit * taken
        asked += per_unit * asked_of
        filled += per_unit * np.maximum(asked_of - taken, 0)
    expected = zip(asked.tolist(), got.tolist(), filled.tolist(), strict=True)
    assert list(report.bins.values()) == [BinReport(*figures) for figures in expected]


def test_a_bin_of_weight_0_is_not_drawn_from():
    index = random_index()
    weights = {"low": 1.0, "medium": 0.0, "high": 3.0}
    chosen, report = draw_samples(index, "correct", 120, 0, "n", max_length=41, bins=BINS, weights=weights)
    assert {bin_name(index.rows[i]) for i in chosen} == {"low", "high"}
    assert report.bins["low"] == BinReport(30, 30, 0)
    assert report.left_out.in_no_bin == sum(row.correct and bin_name(row) == "medium" for row in index.rows)


@pytest.mark.parametrize("method", ["correct", "balanced", "pairs"])
@pytest.mark.parametrize("weights", [None, {"low": 0.3, "medium": 0.5, "high": 0.2}])
def test_same_seed_same_draw(method: str, weights: dict[str, float] | None):
    def drawn(seed: int) -> list[int]:
        index = random_index()
        options = {"max_length": 35, "bins": BINS, "weights": weights, "length_bin_tokens": 8}
        return draw_samples(index, method, 100, seed, "n", max_pairs_per_problem=9, **options)[0].tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_every_pair_can_come_up():
    """Also where a problem may make fewer pairs than it could: no length has precedence."""
    rows = [Row(0, correct, 1, 3, n) for n in (1, 2, 9, 10, 17) for correct in (True, False)]
    options = {"max_length": 40, "max_pairs_per_problem": 1, "length_bin_tokens": 8}
    seen = Counter(tuple(draw_samples(Index(rows), "pairs", 2, seed, "n", **options)[0][0]) for seed in range(400))
    assert len(seen) == 4 + 4 + 1
    of_length = Counter()
    for (good, _), count in seen.items():
        of_length[rows[good].n_response // 8] += count
    assert [of_length[k] / 400 for k in range(3)] == pytest.approx([0.4, 0.4, 0.2], abs=0.08)


def test_what_is_wrong_is_said():
    index = random_index()
    common = {"max_length": 35}
    with pytest.raises(UserError, match="n is 41; it must be even"):
        draw_samples(index, "pairs", 41, 0, "n", **common)
    with pytest.raises(UserError, match=r"n asks for 999, but there are \d+ correct solutions .*longer than dataset"):
        draw_samples(index, "correct", 999, 0, "n", **common)
    weights = {"low": 1.0, "medium": 1.0, "high": 0.0}
    there = Counter(bin_name(row) for row in index.rows if row.correct and row.length <= 35)
    message = rf"all bins together \(low {there['low']}, medium {there['medium']}, high 0\)"
    with pytest.raises(UserError, match=message):
        draw_samples(index, "correct", 999, 0, "n", bins=BINS, weights=weights, **common)
    with pytest.raises(UserError, match=r"in any bin .*there are 1 to 11; 0 is unknown"):
        draw_samples(index, "balanced", 10, 0, "n", bins={"none": (20, 30)}, weights={"none": 1.0}, **common)
    with pytest.raises(UserError, match=r"all 600 examples .* dataset.max_length 5 \(the shortest has 6 tokens"):
        draw_samples(index, "pairs", None, 0, "n", max_length=5)
    apart = Index([Row(0, True, 1, 2, 5), Row(0, False, 1, 2, 12)])
    with pytest.raises(UserError, match=r"no pairs .* of the same length .*length_bin_tokens 8.*2 without a partner"):
        draw_samples(apart, "pairs", None, 0, "n", length_bin_tokens=8, **common)


def test_draw_from_nothing():
    with pytest.raises(UserError, match="there are no cases; choose another"):
        draw(np.array([], int), None, 0, "cases", "n")


def test_bins():
    assert assign_bins(np.array([0, 1, 3, 4, 7, 8, 11, 12]), BINS).tolist() == [-1, 0, 0, 1, 1, 2, 2, -1]


def settings_of(stage: str, *changes: str):
    return load_settings(ROOT / f"configs/{stage}/micro.yaml", ["dataset.max_length=38", *changes])


def test_settings_reach_the_draw():
    index = random_index()
    shares = "data_sampling.difficulty={weights: {low: 2, medium: 1, high: 1}}"
    changes = "data_sampling.n_samples=80", shares, "data_sampling.length_balanced=true"
    lengths = "data_sampling.length_bin_tokens=8", "critic.loss_type=pairwise"
    chosen, report = draw_examples(STAGES["critic"], settings_of("critic", *changes, *lengths), index, "n")
    assert chosen.shape == (40, 2)
    assert index.lengths[chosen].max() <= 38
    assert report.left_out.too_long == (index.lengths > 38).sum()
    assert [of.asked for of in report.bins.values()] == [40, 20, 20]
    responses = (index.lengths - index.n_prompt)[chosen] // 8
    assert (responses[:, 0] == responses[:, 1]).all()
    # The same solutions, one after another, where the loss takes no pairs.
    heads = settings_of("baseline", *changes, lengths[0], "data_sampling.method=pairs")
    flat, _ = draw_examples(STAGES["baseline"], heads, index, "n")
    assert flat.tolist() == sorted(chosen.reshape(-1))


def test_validation_is_the_same_whatever_is_trained_on():
    index = Index(random_index().rows, name="valid")
    changes = ("data_sampling.n_samples=80", "data_sampling.n_validation_samples=50", "data_sampling.correct_ratio=0.9")
    shares = "data_sampling.difficulty={weights: {low: 1, medium: 0, high: 0}}"
    plain = draw_examples(STAGES["critic"], settings_of("critic", *changes[1:2]), index, "n")
    other = draw_examples(STAGES["critic"], settings_of("critic", *changes, shares), index, "n")
    assert plain[0].tolist() == other[0].tolist()
    assert plain[1] == other[1]
    assert (other[1].correct, other[1].incorrect) == (25, 25)


def test_length_balance_needs_pairs():
    with pytest.raises(UserError, match=r"length_balanced is about pairs, but stage critic draws by .* balanced"):
        draw_examples(
            STAGES["critic"], settings_of("critic", "data_sampling.length_balanced=true"), random_index(), "n"
        )


def test_table():
    index = random_index()
    weights = {"low": 0.8, "medium": 0.1, "high": 0.1}
    options = {"max_length": 35, "bins": BINS, "weights": weights, "length_bin_tokens": 8}
    report = draw_samples(index, "pairs", 160, 0, "n", **options)[1]
    valid = draw_samples(index, "correct", 7, 0, "n", max_length=99)[1]
    assert report.bins["low"].filled > 0
    console = Console(width=80)
    with console.capture() as capture:
        console.print(sample_table({"train": report, "valid": valid}))
    text = {" ".join(line.replace("│", " ").split()) for line in capture.get().splitlines()}
    assert f"difficulty low {report.bins['low'].got} (asked: 128) -" in text
    assert f"too few in low, others taken {report.bins['low'].filled} -" in text
    assert f"left out: too long {report.left_out.too_long} -" in text
    assert "pairs 80 -" in text
    assert "correct solutions 80 7" in text
