"""prepare in parts: several processes, kills at every place, full disks, the hub, other forms of input."""

import errno
import fcntl
import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmtp_jax import files, prepare
from wmtp_jax.data import sources, writer
from wmtp_jax.data.store import TESTS, data_fingerprint, open_split
from wmtp_jax.data.tokenize import train_tokenizer
from wmtp_jax.errors import Failure, UserError

SMALL_PART = 20_000  # bytes


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["print(int(input()) + 1)"] * 20, 300, folder)
    return folder


def problem(number: int) -> dict:
    return {
        "name": f"problem {number}",
        "description": f"Add {number} to a number.",
        "public_tests": {"input": ["1"], "output": [str(number + 1)]},
        "difficulty": number % 12,
        "solutions": {"language": [3, 3, 1], "solution": [f"print(int(input()) + {number})", f"# {number}", "print 1"]},
        "incorrect_solutions": {"language": [3], "solution": [f"print({number})"]},
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """500 problems in Parquet with several row groups, JSONL and gzipped JSONL."""
    folder = tmp_path_factory.mktemp("raw")
    rows = [problem(number) for number in range(500)]
    pq.write_table(pa.Table.from_pylist(rows[:200]), folder / "train-0.parquet", row_group_size=60)
    (folder / "train-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[200:350]))
    with gzip.open(folder / "valid.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[350:])
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "_CHUNK_ROWS", 16)
    monkeypatch.setattr(writer, "_PART_BYTES", SMALL_PART)


@pytest.fixture(scope="module")
def arguments(raw: Path, tokenizer: Path):
    def make(output: Path, *more) -> list[str]:
        named = ("--source", raw, "--tokenizer", tokenizer, "--output", output)
        return ["--dataset", "codecontests", *map(str, (*named, *more))]

    return make


@pytest.fixture
def whole(arguments, tmp_path: Path) -> Path:
    """Prepared without interruption, by one process."""
    prepare.main(arguments(tmp_path / "whole", "--workers", 1))
    assert len(list((tmp_path / "whole/parts").iterdir())) > 4
    return tmp_path / "whole"


def assert_same(a: Path, b: Path):
    assert data_fingerprint(a) == data_fingerprint(b)
    assert (a / TESTS).read_bytes() == (b / TESTS).read_bytes()
    for name in ("train", "valid"):
        ours, theirs = open_split(a, name), open_split(b, name)
        assert ours.read(range(len(ours))) == theirs.read(range(len(theirs)))
    assert not list(b.parent.glob(f"{b.name}.*"))


def test_several_processes_give_what_one_gives(arguments, whole: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prepare, "_ONE_PROCESS", 0)
    prepare.main(arguments(tmp_path / "out", "--workers", 3))
    assert_same(whole, tmp_path / "out")


def test_an_error_in_another_process_names_the_row(arguments, raw: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prepare, "_ONE_PROCESS", 0)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(problem(n)) + "\n" for n in range(40)) + "{\n")
    with pytest.raises(UserError, match=r"rows.jsonl line 41, column 2: broken JSON"):
        prepare.main([*arguments(tmp_path / "out", "--workers", 2), "--source", str(source)])


def test_a_killed_command_goes_on(arguments, whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    script = (
        "import sys, time; from wmtp_jax import prepare; from wmtp_jax.data import sources, writer; "
        f"sources._CHUNK_ROWS, writer._PART_BYTES, prepare._ONE_PROCESS = 16, {SMALL_PART}, 0; "
        "add = writer.Writer.add; writer.Writer.add = lambda *a: (time.sleep(0.1), add(*a)); "
        "prepare.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *arguments(out, "--workers", 2)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out.partial/parts/00002").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    workers = _children(child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers):  # none is left behind
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not out.exists()
    kept = (tmp_path / "out.partial/parts/00001/train.solutions.arrow").stat().st_ino
    prepare.main(arguments(out))
    assert_same(whole, out)
    assert (out / "parts/00001/train.solutions.arrow").stat().st_ino == kept


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class _Stop(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize(
    ("place", "count"), [("sync", 1), ("sync", 3), ("rename", 1), ("rename", 3), ("savez", 1), ("savez", 2), ("put", 1)]
)
def test_interrupted_anywhere_it_goes_on(place: str, count: int, arguments, whole: Path, tmp_path: Path):
    out, calls = tmp_path / "out", iter(range(1, 100))
    owner, name = {
        "sync": (writer.os, "sync"),
        "rename": (Path, "rename"),
        "savez": (writer.np, "savez"),
        "put": (files, "_put"),
    }[place]
    original = getattr(owner, name)

    def stopping(*args, **kwargs):
        if next(calls) == count:
            raise _Stop
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        with pytest.raises(_Stop):
            prepare.main(arguments(out))
    assert not out.exists()
    prepare.main(arguments(out))
    assert_same(whole, out)


def test_a_full_disk(arguments, whole: Path, tmp_path: Path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    for place in (writer, files):  # in the middle of a part, and at the end
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, "_write_arrow" if place is writer else "_put", full)
            with pytest.raises(Failure, match="the disk is full"):
                prepare.main(arguments(out))
        assert not out.exists()
    prepare.main(arguments(out))
    assert_same(whole, out)


def test_unfinished_work_of_another_job(arguments, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare.main(arguments(out))
    with pytest.raises(UserError, match=r"unfinished work .*different: languages"):
        prepare.main(arguments(out, "--language", "python2"))
    (tmp_path / "out.partial/parts/00001").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"parts/00001: is missing, but 00002 is there"):
        prepare.main(arguments(out))
    (tmp_path / "aside").rename(tmp_path / "out.partial/parts/00001")
    for name in ("part.json", "train.solutions.arrow"):
        path = tmp_path / "out.partial/parts/00001" / name
        content = path.read_bytes()
        path.write_bytes(content[:10])
        with pytest.raises(UserError, match=r"00001.* is damaged.*remove .*out.partial and begin anew"):
            prepare.main(arguments(out))
        path.write_bytes(content)
    tests = (tmp_path / "out.partial" / TESTS).read_bytes()
    (tmp_path / "out.partial" / TESTS).write_bytes(b"")
    with pytest.raises(UserError, match="shorter than it was"):
        prepare.main(arguments(out))
    (tmp_path / "out.partial" / TESTS).write_bytes(tests)
    with _locked(tmp_path / "out.partial"):
        with pytest.raises(UserError, match="another process"):
            prepare.main(arguments(out))
        with pytest.raises(UserError, match="another process"):
            prepare.main(arguments(out, "--language", "python2", "--overwrite"))
    prepare.main(arguments(out, "--language", "python2", "--overwrite"))
    assert open_split(out, "train").read([0])[0].output == "print 1"


class _locked:
    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self):
        self._handle = os.open(self._folder, os.O_RDONLY)
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_):
        os.close(self._handle)


def test_a_problem_that_stands_twice_in_different_parts(arguments, tmp_path: Path):
    source = tmp_path / "rows.jsonl"
    numbers = [*range(300), 7]
    source.write_text("".join(json.dumps(problem(n)) + "\n" for n in numbers))
    with pytest.raises(UserError, match=r"line 301: the problem 'problem 7' stands at .*line 8 already"):
        prepare.main([*arguments(tmp_path / "out"), "--source", str(source)])


def test_solutions_in_unknown_encodings_are_left_out_and_counted(arguments, tmp_path: Path, capsys):
    (tmp_path / "raw").mkdir()
    row = problem(1)
    row["solutions"] = {"language": [3, 3], "solution": ["print(1)", "# caf\udce9"]}
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")  # a Latin-1 byte in UTF-8
    half = json.dumps({**problem(2), "solutions": {"language": [3, 3], "solution": ["x = '\ud800'", "print(2)"]}})
    (tmp_path / "raw/train.jsonl").write_bytes(line + b"\n" + half.encode() + b"\n")
    # The same in Parquet, whose strings are not checked when they are written.
    texts = pa.array([b"print(3)", b"# caf\xe9"], pa.binary())
    programs = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    solutions = pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), pa.array([3, 3])),
            pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), programs),
        ],
        ["language", "solution"],
    )
    table = pa.table({"name": ["in parquet"], "description": ["d"], "solutions": solutions})
    pq.write_table(table, tmp_path / "raw/train.parquet")
    more = ("--source", str(tmp_path / "raw"), "--output", str(tmp_path / "out"), "--json")
    assert prepare.main([*arguments(tmp_path / "out"), *more]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"]["solutions in an unknown encoding"] == 3
    split = open_split(tmp_path / "out", "train")
    outputs = [example.output for example in split.read(range(len(split))) if example.is_correct]
    assert outputs == ["print(1)", "print(2)", "print(3)"]


def test_ones_own_examples(arguments, tokenizer: Path, tmp_path: Path, capsys):
    (tmp_path / "raw").mkdir()

    def example(task: str, output: str, correct: bool, **metadata) -> str:
        values = {"instruction": f"do {task}", "input": "", "output": output, "task_id": task, "is_correct": correct}
        return json.dumps({**values, "metadata": metadata})

    lines = [
        *(example("a", "\r\n  x ", True, difficulty=3), example("b", "y", True), example("a", "z", False)),
        *(example("c", f"{n}", True) for n in range(40)),
        *(example("b", "y", True), example("a", "z", True), example("a", "", True)),
        example("a", " \n", True),
    ]
    (tmp_path / "raw/train.jsonl").write_text("\n".join(lines))
    command = ["--dataset", "examples", "--source", str(tmp_path / "raw/train.jsonl"), "--tokenizer", str(tokenizer)]
    assert prepare.main([*command, "--output", str(tmp_path / "out"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    # "z" is correct somewhere, so it is correct; problems that are not next to each other are one.
    contradicted = {"incorrect solutions that are also correct ones": 1}
    assert manifest["left_out"] == {"empty solutions": 2, "repeated solutions": 1, **contradicted}
    assert manifest["splits"]["train"]["problems"] == 3
    assert manifest["splits"]["train"]["incorrect"] == 0
    split = open_split(tmp_path / "out", "train")
    (first,) = split.read([0])
    assert first.output == "\r\n  x "  # to the letter
    assert split.difficulty[0] == 3
    assert split.task_ids == ["a", "b", "c"]
    (tmp_path / "raw/valid.jsonl").write_text(example("c", "more", True))
    with pytest.raises(UserError, match="1 problems stand in train and in valid, such as 'c'"):
        prepare.main([*command, "--source", str(tmp_path / "raw"), "--output", str(tmp_path / "leak")])


def test_parquet_as_other_programs_write_it(arguments, tmp_path: Path):
    """Nulls for what is not there, whole numbers as floats, strings in dictionaries, macOS's own files beside it."""
    (tmp_path / "raw").mkdir()
    rows = [problem(1), {**problem(2), "public_tests": {"input": None, "output": None}, "difficulty": None}]
    table = pa.Table.from_pylist(rows)
    floats = table["difficulty"].cast(pa.float64())
    table = table.set_column(table.schema.get_field_index("difficulty"), "difficulty", floats)
    table = table.set_column(1, "description", table["description"].dictionary_encode())
    pq.write_table(table, tmp_path / "raw/train.parquet")
    (tmp_path / "raw/._train.parquet").write_bytes(b"not ours")
    (tmp_path / "raw/train.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(problem(3)).encode() + b"\r\n")
    prepare.main([*arguments(tmp_path / "out"), "--source", str(tmp_path / "raw")])
    split = open_split(tmp_path / "out", "train")
    assert split.n_problems == 3
    assert set(split.difficulty.tolist()) == {0, 1, 3}


def test_output_in_the_source(arguments, raw: Path):
    with pytest.raises(UserError, match="lies in --source"):
        prepare.main(arguments(raw / "out"))


def test_languages(arguments, tmp_path: Path):
    prepare.main(arguments(tmp_path / "out", "--language", "python3", "--language", "python2"))
    split = open_split(tmp_path / "out", "train")
    languages = {e.metadata["language"] for e in split.read(range(len(split)))}
    assert languages == {"python2", "python3"}
    assert split.n_problems == 350


class _Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of the Hugging Face hub that reading a public data set needs."""

    folder: Path
    cut = False

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        asked = self.rfile.read(length).decode()
        names = json.loads(asked)["paths"] if asked.startswith("{") else []
        self._json([self._entry(name) for name in names if (self.folder / name).exists()])

    def _answer(self, *, body: bool):
        path = urlparse(self.path).path
        if "/some/data" not in path:
            self.send_response(401 if "/nobody/" in path else 503)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
        elif "/tree/" in path:
            self._json([self._entry(p.name) for p in sorted(self.folder.iterdir())])
        elif "/resolve/" in path:
            self._file(self.folder / path.rsplit("/", 1)[1], body)
        else:
            self._json({"id": "some/data", "sha": "0" * 40, "siblings": [], "private": False})

    def _entry(self, name: str) -> dict:
        return {"type": "file", "path": name, "oid": "1" * 40, "size": (self.folder / name).stat().st_size}

    def _json(self, value: object):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _file(self, path: Path, body: bool):
        if self.cut and path.name == "train-1.jsonl":
            self.connection.close()
            return
        content = path.read_bytes()
        size = len(content)
        asked = self.headers.get("Range")
        self.send_response(206 if asked else 200)
        if asked:
            begin, end = asked.removeprefix("bytes=").split("-")
            last = min(int(end or size), size - 1)
            content = content[int(begin) : last + 1]
            self.send_header("Content-Range", f"bytes {begin}-{last}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        """Silent."""


def test_from_the_hub(arguments, raw: Path, whole: Path, tmp_path: Path):
    _Hub.folder = raw
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    }
    script = (
        "from wmtp_jax import prepare; from wmtp_jax.data import sources, writer; from wmtp_jax.errors import "
        f"run_command; sources._CHUNK_ROWS, writer._PART_BYTES = 16, {SMALL_PART}; run_command(prepare.main)"
    )

    def run(source: str, output: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script, *arguments(tmp_path / output), "--source", source]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    try:
        done = run("some/data", "out")
        assert done.returncode == 0, done.stderr
        assert_same(whole, tmp_path / "out")
        done = run("nobody/data", "other")
        assert (done.returncode, "neither a file or folder here nor a data set on" in done.stderr) == (2, True)
        _Hub.cut = True
        done = run("some/data", "cut")
        assert (done.returncode, "cannot be read" in done.stderr, "goes on from here" in done.stderr) == (1, True, True)
        _Hub.cut = False
    finally:
        server.shutdown()
        server.server_close()
    done = run("some/data", "away")
    assert (done.returncode, "the Hugging Face hub cannot be reached" in done.stderr) == (1, True)
