"""Packing: every document once, whole, in a row of its length or less."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp_jax.data.pack import assign_rows, fill_rows
from wmtp_jax.data.tokenize import TokenizedExample


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60))
def test_every_document_once_and_no_row_too_long(lengths: list[int]):
    rows = assign_rows(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    assert assign_rows(lengths, 20) == rows


def test_rows_are_nearly_full():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.6, 5000).astype(int), 10, 2048).tolist()
    rows = assign_rows(lengths, 2048)
    assert sum(lengths) / (len(rows) * 2048) > 0.97


def test_rows_hold_the_documents():
    documents = [
        TokenizedExample(np.array([5, 6, 7], np.int32), 1),
        TokenizedExample(np.array([8, 9], np.int32), 1),
    ]
    rows = fill_rows(documents, [[0, 1], [1]], 6)
    assert rows.tokens.tolist() == [[5, 6, 7, 8, 9, 0], [8, 9, 0, 0, 0, 0]]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]]
    assert rows.loss_mask.astype(int).tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert rows.n_tokens == 7
