"""Writes a processed data set part by part, so that a kill loses no more than the part that was being made."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wmtp_jax.data.problems import CONTRADICTED, REPEATED
from wmtp_jax.data.store import (
    FORMAT_VERSION,
    MANIFEST,
    PARTS,
    SPLITS,
    TESTS,
    Index,
    Split,
    file_facts,
    index_file,
    part_file,
    part_name,
    read_arrow,
)
from wmtp_jax.errors import UserError

_PART_FILE = "part.json"
_PART_BYTES = 64 * 2**20  # of texts and tokens; what a kill may cost


class Converted(NamedTuple):
    """Some rows of the source, converted.

    Attributes:
      prompts, solutions: of each split, in the columns of `wmtp_jax.data.store`; ``prompt`` counts from 0 in each.
      names: hash and place of each problem of which the source has one row; a second one is an error.
      tests: test cases, gzipped lines.
      left_out: solutions that are not among them, by reason.
      next_row: (file, row) of the source at which the next batch begins.
      n_rows, n_bytes: of the source.
    """

    prompts: dict[str, pa.RecordBatch]
    solutions: dict[str, pa.RecordBatch]
    names: list[tuple[int, str, str]]
    tests: bytes
    left_out: Counter[str]
    next_row: tuple[int, int]
    n_rows: int
    n_bytes: int


def hash_texts(*texts: str) -> int:
    """64 bits that tell texts apart."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little", signed=True)


class Writer:
    """Writes batches in their order. What stands in ``directory`` from an interrupted run is gone on with.

    Attributes:
      next_row: (file, row) of the source at which to go on.
      n_rows, n_bytes: of the source, that have been taken.
      n_solutions: that came of them.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.next_row = (0, 0)
        self.left_out: Counter[str] = Counter()
        self.n_rows = self.n_bytes = self.n_solutions = 0
        self._batches: list[Converted] = []
        self._bytes = 0
        self._names: set[int] = set()
        self._largest: dict[str, int] = {}
        self._n_parts = 0
        (directory / PARTS).mkdir(exist_ok=True)
        for part in sorted((directory / PARTS).iterdir()):
            if part.suffix:  # it was being written
                shutil.rmtree(part)
                continue
            facts = _read_part(part, self._n_parts)
            self.next_row, self.left_out = tuple(facts["next_row"]), Counter(facts["left_out"])
            self.n_rows, self.n_bytes, self.n_solutions = (facts[n] for n in ("n_rows", "n_bytes", "n_solutions"))
            self._n_parts += 1
            self._names.update(key for key, _ in facts["names"])
            self._largest = facts["largest_token"]
        tests = directory / TESTS
        tests.touch()
        tests_bytes = facts["tests_bytes"] if self._n_parts else 0
        if tests.stat().st_size < tests_bytes:
            raise UserError(f"{tests}: is shorter than it was; remove {directory} and begin anew")
        with tests.open("rb+") as file:
            file.truncate(tests_bytes)
        self._tests = tests.open("ab")

    def add(self, batch: Converted) -> None:
        """Takes a batch; writes a part where there is enough for one.

        Raises:
          UserError: a problem stands in the source twice.
        """
        self._batches.append(batch)
        for key, name, where in batch.names:
            if key in self._names:
                raise UserError(f"{where}: the problem {name!r} stands {self._where(key)} already; remove one")
            self._names.add(key)
        self._bytes += sum(b.nbytes for kind in batch[:2] for b in kind.values()) + len(batch.tests)
        self.n_rows += batch.n_rows
        self.n_bytes += batch.n_bytes
        self.n_solutions += sum(len(solutions) for solutions in batch.solutions.values())
        if self._bytes >= _PART_BYTES:
            self.write_part()

    def _where(self, key: int) -> str:
        for part in sorted((self.directory / PARTS).iterdir()):
            for other, where in json.loads((part / _PART_FILE).read_text())["names"]:
                if other == key:
                    return f"at {where}"
        return next(f"at {where}" for batch in self._batches for other, _, where in batch.names if other == key)

    def write_part(self) -> None:
        """Writes what is there as a part; it appears whole."""
        if not self._batches:
            return
        part = self.directory / PARTS / part_name(self._n_parts)
        writing = part.with_suffix(".writing")
        writing.mkdir()
        for split in SPLITS:
            batches = [batch for batch in self._batches if split in batch.solutions]
            if batches:
                starts = np.cumsum([0, *(len(batch.prompts[split]) for batch in batches)])
                shifted = [_shift(b.solutions[split], int(start)) for b, start in zip(batches, starts, strict=False)]
                of_kinds = {"prompts": [batch.prompts[split] for batch in batches], "solutions": shifted}
                for kind, rows in of_kinds.items():
                    largest = _write_arrow(writing / f"{split}.{kind}.arrow", rows)
                    self._largest[split] = max(self._largest.get(split, 0), largest)
        for batch in self._batches:
            self.left_out.update(batch.left_out)
            self._tests.write(batch.tests)
        self._tests.flush()
        self.next_row = self._batches[-1].next_row
        facts = {
            "next_row": self.next_row,
            "left_out": self.left_out,
            "n_rows": self.n_rows,
            "n_bytes": self.n_bytes,
            "n_solutions": self.n_solutions,
            "names": [(key, where) for batch in self._batches for key, _, where in batch.names],
            "tests_bytes": self._tests.tell(),
            "largest_token": self._largest,
            "bytes": {path.name: path.stat().st_size for path in writing.iterdir()},
        }
        (writing / _PART_FILE).write_text(json.dumps(facts))
        os.sync()  # its contents are on the disk before its name is, should the machine go
        writing.rename(part)
        self._n_parts += 1
        self._batches, self._bytes = [], 0

    def _check_apart(self, built: dict[str, _Built]) -> None:
        """Raises UserError where a problem is in two splits: validation would see what was trained on."""
        for one, other in itertools.combinations(built, 2):
            common = np.intersect1d(built[one].problems, built[other].problems, assume_unique=True)
            if len(common):
                number = int(np.flatnonzero(built[one].problems == common[0])[0])
                name = Split(self.directory, one, built[one].entries).task_id(number)
                raise UserError(
                    f"{len(common):,} problems stand in {one} and in {other}, such as {name!r}; validation would see "
                    "what was trained on. Give each problem one split: files whose names begin with it"
                )

    def close(self) -> None:
        """Closes what is open; what is not yet in a part is lost."""
        self._tests.close()

    def finish(self, facts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Index]]:
        """Writes the last part, the indices and the manifest.

        Returns:
          The manifest, and the index of each split.

        Raises:
          UserError: there is no solution, or a problem is in two splits.
        """
        if not self.n_solutions:
            left_out = sum((batch.left_out for batch in self._batches), self.left_out)
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise UserError(f"there is no usable solution in {facts['source']}; left out: {reasons or 'nothing'}")
        self.write_part()
        self.close()
        built = {}
        for split in SPLITS:
            parts = [n for n in range(self._n_parts) if part_file(self.directory, n, split, "solutions").exists()]
            if parts:
                built[split] = _build_index(self.directory, split, parts)
        self._check_apart(built)
        splits, files = {}, {}
        for split, (index, _, repeated, contradicted) in built.items():
            self.left_out[REPEATED] += repeated
            self.left_out[CONTRADICTED] += contradicted
            np.savez(index_file(self.directory, split), **index._asdict())
            splits[split] = {**_count(index), "largest_token": self._largest[split]}
            for path in [index_file(self.directory, split)] + [
                part_file(self.directory, part, split, kind)
                for part in index.parts
                for kind in ("prompts", "solutions")
            ]:
                files[str(path.relative_to(self.directory))] = file_facts(path)
        if (self.directory / TESTS).stat().st_size:
            files[TESTS] = file_facts(self.directory / TESTS)
        else:
            (self.directory / TESTS).unlink()
        digest = hashlib.sha256()
        for name in sorted(files):
            if name.endswith(".arrow"):  # an index follows from them, and holds the time; tests are not trained on
                digest.update(f"{name} {files[name]['sha256']}".encode())
        manifest = {
            "format_version": FORMAT_VERSION,
            **facts,
            "splits": splits,
            "left_out": {reason: count for reason, count in sorted(self.left_out.items()) if count},
            "fingerprint": digest.hexdigest(),
            "files": files,
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (self.directory / MANIFEST).write_text(text)
        return manifest, {split: of_split.entries for split, of_split in built.items()}


def _read_part(part: Path, number: int) -> dict[str, Any]:
    """What a finished part says of itself.

    Raises:
      UserError: it is not the one that is due, or is damaged.
    """
    remedy = f"remove {part.parent.parent} and begin anew"
    if part.name != part_name(number):
        raise UserError(f"{part.parent / part_name(number)}: is missing, but {part.name} is there; {remedy}")
    try:
        facts = json.loads((part / _PART_FILE).read_text())
        for name, size in facts["bytes"].items():
            if (part / name).stat().st_size != size:
                raise UserError(f"{part / name}: is damaged; {remedy}")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{part}: is damaged ({error}); {remedy}") from error
    return dict(facts)


def _write_arrow(path: Path, batches: list[pa.RecordBatch]) -> int:
    """Writes batches as one; returns the largest token."""
    (whole,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    with pa.ipc.new_file(str(path), whole.schema) as file:
        file.write(whole)
    return int(whole["tokens"].values.to_numpy().max(initial=0))


def _shift(solutions: pa.RecordBatch, start: int) -> pa.RecordBatch:
    """Numbers of prompts counted through the part, not the batch."""
    shifted = pa.array(solutions["prompt"].to_numpy() + np.int32(start), pa.int32())
    return solutions.set_column(solutions.schema.get_field_index("prompt"), "prompt", shifted)


class _Built(NamedTuple):
    """The index of a split, and what came up on the way.

    Attributes:
      entries: the index.
      problems: (M,) int64, hash of the name of each problem, by number.
      repeated, contradicted: solutions that it leaves out: those that stand twice, and incorrect ones that are correct
        elsewhere.
    """

    entries: Index
    problems: np.ndarray
    repeated: int
    contradicted: int


def _build_index(directory: Path, split: str, parts: list[int]) -> _Built:
    keys, labels, prompts, n_response, names, difficulty, n_prompt = ([] for _ in range(7))
    n_prompts = 0
    for part in parts:
        rows = read_arrow(part_file(directory, part, split, "solutions"))
        keys.append(rows["key"].to_numpy().copy())  # not views: they would keep every part's file mapped
        labels.append(rows["is_correct"].to_numpy(zero_copy_only=False))
        prompts.append(rows["prompt"].to_numpy() + np.int32(n_prompts))
        n_response.append(np.diff(rows["tokens"].offsets.to_numpy()))
        of_prompts = read_arrow(part_file(directory, part, split, "prompts"))
        names.append(of_prompts["key"].to_numpy().copy())
        difficulty.append(of_prompts["difficulty"].to_numpy().copy())
        n_prompt.append(np.diff(of_prompts["tokens"].offsets.to_numpy()))
        n_prompts += len(of_prompts)
    key, is_correct = np.concatenate(keys), np.concatenate(labels)
    # A text that stands twice counts once, as correct if it is so anywhere, as in a problem with all its solutions.
    order = np.lexsort((np.arange(len(key)), ~is_correct, key))
    first = np.ones(len(key), bool)
    first[1:] = key[order][1:] != key[order][:-1]
    place = np.sort(order[first])
    problems, first_prompt, inverse = np.unique(np.concatenate(names), return_index=True, return_inverse=True)
    by_appearance = np.argsort(first_prompt)
    number = np.empty(len(by_appearance), np.int32)
    number[by_appearance] = np.arange(len(by_appearance), dtype=np.int32)
    index = Index(
        place=place,
        prompt=np.concatenate(prompts)[place],
        is_correct=is_correct[place],
        n_response=np.concatenate(n_response)[place].astype(np.int32),
        problem=number[inverse],
        difficulty=np.concatenate(difficulty),
        n_prompt=np.concatenate(n_prompt).astype(np.int32),
        first_prompt=first_prompt[by_appearance].astype(np.int32),
        parts=np.array(parts, np.int32),
    )
    group = np.cumsum(first) - 1
    contradicted = int((~first & ~is_correct[order] & is_correct[order][first][group]).sum())
    return _Built(index, problems[by_appearance], len(key) - len(place) - contradicted, contradicted)


def _count(index: Index) -> dict[str, int]:
    n_correct = int(index.is_correct.sum())
    return {
        "problems": len(index.first_prompt),
        "correct": n_correct,
        "incorrect": len(index.place) - n_correct,
        "tokens": int(index.lengths.sum(dtype=np.int64)),
    }
