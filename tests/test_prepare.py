"""prepare: real and hostile sources through the command, and reading back what it wrote."""

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmtp_jax import prepare
from wmtp_jax.data.store import TESTS, data_fingerprint, open_split, read_manifest
from wmtp_jax.data.tokenize import load_tokenizer, train_tokenizer
from wmtp_jax.errors import UserError

ROW = {
    "name": "1_A",
    "description": "Add two numbers.\r\n",
    "public_tests": {"input": ["1 2"], "output": ["3"]},
    "private_tests": {"input": [], "output": []},
    "generated_tests": {"input": ["4 4"], "output": ["8"]},
    "source": 2,
    "difficulty": 7,
    "cf_rating": 800,
    "cf_tags": ["math"],
    "time_limit": {"seconds": 1, "nanos": 500_000_000},
    "solutions": {
        "language": [3, 3, 2, 3, 3],
        "solution": ["print(1)\r\n", "print(1)", "int x;", " ", "print(3)"],
    },
    "incorrect_solutions": {"language": [1, 3], "solution": ["print 1", "print(2)"]},
}


def row(name: str, **changes) -> dict:
    return {**ROW, "name": name, **changes}


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def run(*args) -> int:
    return prepare.main([str(a) for a in args])


@functools.cache
def tokenizer() -> Path:
    """A small tokenizer, made once."""
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    atexit.register(shutil.rmtree, folder)
    train_tokenizer(["print(1)", "Add two numbers."] * 20, 300, folder)
    return folder


def run_codecontests(source: Path, output: Path, *more) -> int:
    return run("--dataset", "codecontests", "--source", source, "--tokenizer", tokenizer(), "--output", output, *more)


def read_tests(data: Path) -> list[dict]:
    with gzip.open(data / TESTS, "rt") as file:
        return [json.loads(line) for line in file]


def assert_clean(folder: Path, *allowed: str):
    """Nothing half-written is left."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(allowed)


def test_codecontests_parquet_as_published(tmp_path: Path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, names in (("train-00000-of-00002", ["a", "b"]), ("valid-00000-of-00001", ["c"])):
        pq.write_table(pa.Table.from_pylist([row(n) for n in names]), raw / f"{name}.parquet")
    assert run_codecontests(raw, tmp_path / "out", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert all(256 < split.pop("largest_token") < 300 for split in manifest["splits"].values())
    assert manifest["splits"] == {
        "train": {"problems": 2, "correct": 4, "incorrect": 2, "tokens": 258},
        "valid": {"problems": 1, "correct": 2, "incorrect": 1, "tokens": 129},
    }
    assert manifest["left_out"] == {
        "empty solutions": 3,
        "repeated solutions": 3,
        "solutions in cpp": 3,
        "solutions in python2": 3,
    }
    train = open_split(tmp_path / "out", "train")
    assert train.is_correct.tolist() == [True, True, False] * 2
    assert train.problem.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.difficulty.tolist() == [7] * 6
    assert train.task_ids == ["a", "b"]
    (example,) = train.read([5])
    assert (example.instruction, example.output, example.task_id) == ("Add two numbers.", "print(2)", "b")
    assert example.metadata["tags"] == ["math"]
    tests = read_tests(tmp_path / "out")
    assert tests[0]["generated"] == [{"input": "4 4", "output": "8"}]
    assert tests[0]["time_limit_seconds"] == 1.5
    assert_clean(tmp_path, "raw", "out")


def test_jsonl_gz_gives_the_same_and_splits_by_problem(tmp_path: Path, capsys):
    rows = [row(f"p{i}") for i in range(200)]
    write_jsonl(tmp_path / "all.jsonl", rows)
    with gzip.open(tmp_path / "all.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    for name in ("all.jsonl", "all.jsonl.gz"):
        run_codecontests(tmp_path / name, tmp_path / f"out-{name}", "--validation-fraction", "0.2")
    assert data_fingerprint(tmp_path / "out-all.jsonl") == data_fingerprint(tmp_path / "out-all.jsonl.gz")
    train, valid = (open_split(tmp_path / "out-all.jsonl", name) for name in ("train", "valid"))
    assert not set(train.task_ids) & set(valid.task_ids)
    assert len(valid.task_ids) == pytest.approx(40, abs=20)
    run_codecontests(tmp_path / "all.jsonl", tmp_path / "other", "--validation-fraction", "0.2", "--seed", "1")
    assert set(open_split(tmp_path / "other", "valid").task_ids) != set(valid.task_ids)
    assert "Data set codecontests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "file", "splits"),
    [
        ("codecontests", "codecontests/problems.jsonl", {"train": 191, "valid": 9}),
        ("mbpp", "mbpp/mbpp.jsonl", {"train": 384, "valid": 90, "test": 500}),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", {"test": 164}),
    ],
)
def test_real_data(dataset: str, file: str, splits: dict, shared_data: Path, tmp_path: Path):
    more = ["--tokenizer", tokenizer()] if dataset == "codecontests" else []
    run("--dataset", dataset, "--source", shared_data / file, "--output", tmp_path / "out", *more)
    for name, count in splits.items():
        split = open_split(tmp_path / "out", name)
        assert len(split.task_ids) == count
        assert all(e.output and e.instruction for e in split.read(range(len(split))))
    tests = read_tests(tmp_path / "out")
    assert len(tests) == sum(splits.values())
    assert all(t["public"] if t["kind"] == "stdio" else t["test"] for t in tests)


BROKEN = {
    "broken JSON": ([row("a"), '{"name": "b", '], "line 2, column 14: broken JSON"),
    "no object": (["[1]"], "line 1: expected an object"),
    "missing field": ([{k: v for k, v in ROW.items() if k != "description"}], "'description' is missing"),
    "wrong type": ([row("a", description=3)], "'description': .*found 3"),
    "wrong list": ([row("a", solutions={"language": ["3"], "solution": ["x"]})], "'solutions.language.0'"),
    "unequal solutions": ([row("a", solutions={"language": [3, 3], "solution": ["x"]})], "2 languages, but 1 solu"),
    "unequal tests": ([row("a", public_tests={"input": ["1"], "output": []})], "1 inputs, but 0 outputs"),
    "extract": ([{"id": "a", "description": "d", "solution_py3": "x", "tests": [{"input": 1}]}], "'tests.0.output'"),
    "half a surrogate pair": ([row("a", description="\ud800")], "line 1: the field 'description' is not UTF-8 text"),
    "a number of 5000 digits": (['{"name": ' + "1" * 5000 + "}"], "line 1: cannot be read"),
    "brackets by the thousand": (["[" * 200_000], "line 1: cannot be read"),
    "difficulty beyond 64 bits": ([row("a", difficulty=10**30)], "'difficulty'"),
    "twice": ([row("a"), row("a")], "line 2: the problem 'a' stands at .* line 1 already"),
    "empty": ([], "there is no row"),
    "nothing usable": (
        [row("a", solutions={"language": [2], "solution": ["x"]}, incorrect_solutions={})],
        "usable",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_rows(case: str, tmp_path: Path):
    rows, message = BROKEN[case]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=message):
        run_codecontests(source, tmp_path / "out")
    assert_clean(tmp_path, "rows.jsonl")


@pytest.mark.parametrize(
    ("dataset", "fields", "message"),
    [
        ("humaneval", {"prompt": 5}, "line 1: .*'task_id' is missing; the field 'prompt': .*found 5"),
        ("mbpp", {"task_id": 975}, "'task_id': .*found 975; .*'text' is missing"),
    ],
)
def test_broken_benchmark_rows(dataset: str, fields: dict, message: str, tmp_path: Path):
    source = write_jsonl(tmp_path / "rows.jsonl", [fields])
    with pytest.raises(UserError, match=message):
        run("--dataset", dataset, "--source", source, "--output", tmp_path / "out")
    assert_clean(tmp_path, "rows.jsonl")


def test_destinations_that_cannot_be(tmp_path: Path):
    source = write_jsonl(tmp_path / "rows.jsonl", [row("a")])
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(UserError, match="is not a folder"):
            run_codecontests(source, tmp_path / name, "--overwrite")
    with pytest.raises(UserError, match="cannot be a folder"):
        run_codecontests(source, tmp_path / ("x" * 300))
    assert_clean(tmp_path, "file", "link", "rows.jsonl")


def test_a_folder_with_the_name_of_a_file_is_passed_over(tmp_path: Path):
    (tmp_path / "raw/x.jsonl").mkdir(parents=True)
    write_jsonl(tmp_path / "raw/train.jsonl", [row("a")])
    assert run_codecontests(tmp_path / "raw", tmp_path / "out") == 0


def test_mbpp_rows_that_stand_twice(shared_data: Path, tmp_path: Path):
    lines = (shared_data / "mbpp/mbpp.jsonl").read_text().splitlines()[:3]
    source = write_jsonl(tmp_path / "mbpp.jsonl", [*lines, lines[1]])
    with pytest.raises(UserError, match=r"line 4: the problem 'mbpp/2' stands at .* line 2 already"):
        run("--dataset", "mbpp", "--source", source, "--output", tmp_path / "out")


def test_broken_files(tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="damaged Parquet"):
        run_codecontests(tmp_path / "bad.parquet", tmp_path / "out")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "thin.parquet")
    with pytest.raises(UserError, match="column 'description' is missing; found name"):
        run_codecontests(tmp_path / "thin.parquet", tmp_path / "out")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode() * 50)[:-20])
    with pytest.raises(UserError, match=r"cut.jsonl.gz"):
        run_codecontests(tmp_path / "cut.jsonl.gz", tmp_path / "out")
    (tmp_path / "latin.jsonl").write_bytes(b'{"name": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        run_codecontests(tmp_path / "latin.jsonl", tmp_path / "out")
    with pytest.raises(UserError, match=r"expected \.parquet"):
        run_codecontests(Path(__file__), tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        run_codecontests(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"holds no \.parquet"):
        run_codecontests(tmp_path / "folder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "codecontests"], "--source is missing: .*the Parquet files of deepmind"),
        (["--dataset", "mini", "--source", "x"], "mini is generated"),
        (["--dataset", "mini", "--solutions", "0"], "--solutions 0"),
        (["--dataset", "mini", "--workers", "0"], "--workers 0"),
        (["--dataset", "mini", "--vocab-size", "100"], "must be 259 or more"),
        (["--dataset", "mbpp", "--source", "x", "--validation-fraction", "1"], "below 1"),
    ],
)
def test_wrong_arguments(args: list[str], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        run(*args, "--output", tmp_path / "out")
    assert_clean(tmp_path)


def test_existing_output_is_kept_until_the_new_one_is_whole(tmp_path: Path):
    good = write_jsonl(tmp_path / "good.jsonl", [row("a")])
    bad = write_jsonl(tmp_path / "bad.jsonl", [row("b"), "{"])
    out = tmp_path / "out"
    run_codecontests(good, out)
    before = data_fingerprint(out)
    with pytest.raises(UserError, match="exists; give another destination, or --overwrite"):
        run_codecontests(good, out)
    with pytest.raises(UserError, match="broken JSON"):
        run_codecontests(bad, out, "--overwrite")
    assert data_fingerprint(out) == before
    write_jsonl(bad, [row("b")])
    run_codecontests(bad, out, "--overwrite")
    assert data_fingerprint(out) != before
    assert_clean(tmp_path, "good.jsonl", "bad.jsonl", "out")


def test_a_folder_that_is_no_data_set_is_never_replaced(tmp_path: Path):
    source = write_jsonl(tmp_path / "good.jsonl", [row("a")])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letters.txt").write_text("precious")
    with pytest.raises(UserError, match="is no data set of ours"):
        run_codecontests(source, tmp_path / "home", "--overwrite")
    assert (tmp_path / "home/letters.txt").exists()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    run_codecontests(write_jsonl(tmp_path / "train.jsonl", [row(f"p{i}") for i in range(5)]), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("file", ["train.index.npz", "parts/00000/train.solutions.arrow"])
@pytest.mark.parametrize("damage", ["cut", "altered", "absent"])
def test_a_damaged_file_is_named(small: Path, file: str, damage: str):
    path = small / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "absent":
        path.write_bytes(content[:-10] if damage == "cut" else content)
    with pytest.raises(UserError, match=f"{path.name}: (damaged or changed|is missing)"):
        open_split(small, "train")


def test_a_copy_is_as_good(small: Path, tmp_path: Path):
    shutil.copytree(small, tmp_path / "copy", copy_function=shutil.copyfile)
    original, copy = (open_split(folder, "train") for folder in (small, tmp_path / "copy"))
    assert original.read(range(10)) == copy.read(range(10))


def test_tokens_are_those_of_the_texts(small: Path):
    split = open_split(small, "train")
    loaded = load_tokenizer(small / "tokenizer")
    for number, example in enumerate(split.read(range(len(split)))):
        tokens, n_prompt, outcome = split.tokens(number)
        assert loaded.decode(tokens[n_prompt:-1]) == example.output
        assert example.instruction in loaded.decode(tokens[:n_prompt])
        assert (len(tokens), n_prompt, bool(outcome)) == (
            split.lengths[number],
            split.n_prompt[number],
            example.is_correct,
        )


def test_a_data_set_of_an_earlier_version_is_refused(small: Path):
    manifest = read_manifest(small)
    (small / "dataset.json").write_text(json.dumps({**manifest, "format_version": 1}))
    with pytest.raises(UserError, match="format 1, made by another version"):
        open_split(small, "train")


def test_missing_sets_and_splits(small: Path):
    with pytest.raises(UserError, match=r"python -m wmtp_jax\.prepare --dataset mini"):
        open_split(small / "absent", "train")
    with pytest.raises(UserError, match=r"no split 'valid' \(it has: train\)"):
        open_split(small, "valid")
