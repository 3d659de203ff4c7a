"""Placement and packing: every document once, whole, in a row of its length or less; rows nearly full."""

import bisect
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp_jax.data.pack import Placement, fill_rows, place_documents
from wmtp_jax.data.tokenize import TokenizedExample


def documents_of(placement: Placement) -> list[list[int]]:
    return [placement.row(number).tolist() for number in range(len(placement))]


def best_fit_decreasing(lengths: list[int], max_length: int) -> list[list[int]]:
    """One document after another, as the algorithm is written in books; the lengths in each row."""
    rows: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (room, row), sorted
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(by_room, (length, -1))
        room, row = by_room.pop(place) if place < len(by_room) else (max_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(length)
        bisect.insort(by_room, (room - length, row))
    return rows


def fill(lengths: np.ndarray, placement: Placement, max_length: int) -> float:
    return lengths.sum() / (len(placement) * max_length)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(0, 3), st.booleans())
def test_every_document_once_and_no_row_too_long(lengths: list[int], seed: int, packing: bool):
    placement = place_documents(np.array(lengths, np.int32), 20, seed, packing=packing)
    rows = documents_of(placement)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= 20 for row in rows)
    again = place_documents(np.array(lengths, np.int32), 20, seed, packing=packing)
    assert documents_of(again) == rows
    if packing:
        # Rows with as much room are alike to the algorithm: it is free to choose, and they fill up alike.
        found = sorted(sum(lengths[i] for i in row) for row in rows)
        assert found == sorted(map(sum, best_fit_decreasing(lengths, 20)))
    else:
        assert rows == [[i] for i in range(len(lengths))]


@pytest.mark.parametrize(("mean", "spread"), [(6.5, 0.5), (5.5, 0.6), (6.0, 1.0)])
def test_rows_are_nearly_full(mean: float, spread: float):
    lengths = np.random.default_rng(0).lognormal(mean, spread, 20_000).astype(np.int32).clip(40, 2048)
    placement = place_documents(lengths, 2048, seed=0)
    assert fill(lengths, placement, 2048) > 0.97


def fewest_rows(lengths: np.ndarray, max_length: int) -> int:
    """No placement needs fewer (bound L2 of Martello and Toth): those over a half share no row, and so on."""
    bound = 0
    for small in range(0, max_length // 2 + 1, 16):
        alone = (lengths > max_length - small).sum()
        large = lengths[(lengths > max_length // 2) & (lengths <= max_length - small)]
        rest = lengths[(lengths <= max_length // 2) & (lengths >= small)].sum()
        more = rest - (len(large) * max_length - large.sum())
        bound = max(bound, int(alone + len(large) + max(0, -(-more // max_length))))
    return bound


@pytest.mark.parametrize("characters_a_token", [3.0, 3.5, 4.0])
def test_rows_of_real_problems_are_nearly_as_few_as_can_be(shared_data, characters_a_token: float):
    """Statement and solution of CodeContests problems: so many are longer than half a row that some must stay empty."""
    lines = (shared_data / "codecontests/problems.jsonl").read_text().splitlines()
    characters = np.array([len(p["description"]) + len(p["solution_py3"]) for p in map(json.loads, lines)])
    lengths = (characters / characters_a_token).astype(np.int32)
    lengths = lengths[lengths <= 2048]
    assert len(lengths) > 150
    assert len(place_documents(lengths, 2048, seed=0)) <= 1.04 * fewest_rows(lengths, 2048)


def test_rows_of_real_submissions_are_nearly_full(shared_data):
    """AtCoder submissions, right and wrong."""
    lines = (shared_data / "condefects/pairs.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    characters = [len(text) for pair in pairs for text in (pair["correct"], pair["faulty"])]
    lengths = (np.array(characters) / 3).astype(np.int32).clip(1)
    lengths = lengths[lengths <= 2048]
    assert len(lengths) > 3000
    assert fill(lengths, place_documents(lengths, 2048, seed=0), 2048) > 0.97


def test_chance_parts_the_solutions_of_a_problem():
    """A hundred problems whose twenty solutions have one length, as all others do: a row takes eight."""
    problem = np.repeat(np.arange(100), 20)
    placement = place_documents(np.full(2000, 250, np.int32), 2048, seed=0)
    rows = [problem[row] for row in documents_of(placement)]
    assert all(len(row) == 8 for row in rows)
    neighbours = np.concatenate([row[1:] == row[:-1] for row in rows])
    assert neighbours.mean() < 0.03  # 0.0095 by chance
    other = place_documents(np.full(2000, 250, np.int32), 2048, seed=1)
    assert documents_of(other) != documents_of(placement)


def test_a_document_that_is_too_long_is_never_cut():
    with pytest.raises(ValueError, match="a document has 21 tokens, a row 20"):
        place_documents(np.array([3, 21], np.int32), 20, seed=0)


def test_the_order_inside_a_row_is_chance_too():
    """The longest document of a row is not always the first."""
    lengths = np.random.default_rng(0).lognormal(5.5, 0.6, 5000).astype(np.int32).clip(10, 2048)
    rows = [row for row in documents_of(place_documents(lengths, 2048, seed=0)) if len(row) > 3]
    first = np.mean([lengths[row[0]] == lengths[row].max() for row in rows])
    assert 0.05 < first < 0.6


def test_rows_hold_the_documents():
    documents = [
        TokenizedExample(np.array([5, 6, 7], np.int32), 1, 0.0),
        TokenizedExample(np.array([8, 9], np.int32), 1, 1.0),
    ]
    scores = [np.array([0.5, 0.25, 0.125], np.float32), np.array([2.0, 3.0], np.float32)]
    rows = fill_rows([[0, 1], [1], []], 6, documents.__getitem__, outcomes=True, scores=scores.__getitem__)
    assert rows.tokens.tolist() == [[5, 6, 7, 8, 9, 0], [8, 9, 0, 0, 0, 0], [0] * 6]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0], [0] * 6]
    assert rows.loss_mask.astype(int).tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0] * 6]
    assert rows.outcomes.tolist() == [[0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6]
    assert rows.scores.tolist() == [[0.5, 0.25, 0.125, 2, 3, 0], [2, 3, 0, 0, 0, 0], [0] * 6]
    assert rows.n_tokens == 7
    assert fill_rows([[0]], 6, documents.__getitem__).outcomes is None
