"""Files of scores: found by split and row, checked before training, never loaded."""

import numpy as np
import pytest

from wmtp_jax.data.scores import ScoreFacts, ScoreFile, join_parts, write_part
from wmtp_jax.errors import UserError

FACTS = ScoreFacts("critic", "model", "data", "tokenizer", 64, "job")


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, int], np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [("train", int(row)) for row in rng.permutation(50)[:30]] + [("valid", row) for row in range(7)]
    return {key: rng.normal(size=rng.integers(1, 9)).astype(np.float32) for key in rows}


@pytest.fixture(scope="module")
def file(scores, tmp_path_factory) -> ScoreFile:
    """Of three parts, in no order."""
    folder = tmp_path_factory.mktemp("scores")
    keys = list(scores)
    for number, part in enumerate((keys[:10], keys[10:30], keys[30:])):
        rows = np.array([row for _, row in part])
        write_part(folder / f"{number}.arrow", part[0][0], rows, [scores[key] for key in part])
    join_parts(sorted(folder.glob("*.arrow")), folder / "whole", FACTS)
    return ScoreFile(folder / "whole")


def test_each_solution_has_its_own(file, scores):
    for (split, row), expected in scores.items():
        np.testing.assert_array_equal(file.of(split, row), expected)
    assert not file.of("train", next(row for _, row in scores)).flags.owndata  # a view of the file
    assert file.figures()["solutions"] == 37
    assert file.figures()["tokens"] == sum(map(len, scores.values()))


def test_what_is_drawn_must_be_there(file, scores):
    rows = np.array([row for split, row in scores if split == "train"])
    lengths = np.array([len(scores["train", row]) for row in rows])
    file.check_solutions("train", rows, lengths)
    absent = next(row for row in range(50) if row not in rows)
    with pytest.raises(UserError, match=rf"1 of the 31 solutions of train .*\(solution {absent + 1}, 5 tokens\)"):
        file.check_solutions("train", np.append(rows, absent), np.append(lengths, 5))
    with pytest.raises(UserError, match=r"1 of the 1 solutions of test .* made for another draw"):
        file.check_solutions("test", np.array([0]), np.array([5]))
    lengths[4] += 1
    with pytest.raises(UserError, match=rf"has {lengths[4] - 1} scores for solution {rows[4] + 1} of train, which has"):
        file.check_solutions("train", rows, lengths)
