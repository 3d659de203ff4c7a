"""Raw rows -> tables of texts and tokens, by several processes, in the order of the source."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wmtp_jax.data.problems import DATASETS, Options
from wmtp_jax.data.schema import Example, parse_json
from wmtp_jax.data.sources import Chunk
from wmtp_jax.data.tokenize import encode_prompts, encode_responses, load_tokenizer
from wmtp_jax.data.writer import Converted, hash_texts
from wmtp_jax.errors import Failure

_AHEAD = 3  # chunks a process may have waiting: bounds what is in memory


class Converter:
    """Turns a chunk of raw rows into a `Converted`.

    Args:
      options: how rows become problems.
      tokenizer: its folder; None: texts alone, without tokens.
    """

    def __init__(self, options: Options, tokenizer: Path | None):
        self._options = options
        self._problem = DATASETS[options.dataset].problem
        self._tokenizer = load_tokenizer(tokenizer) if tokenizer else None
        small = self._tokenizer is not None and max(self._tokenizer.get_vocab().values()) < 2**16
        self._type = pa.uint16() if small else pa.int32()

    def __call__(self, chunk: Chunk) -> Converted:
        tables: dict[str, _Examples] = {}
        names, tests, left_out = [], [], Counter[str]()
        n_rows = 0
        for where, fields in _rows(chunk):
            n_rows += 1
            problem = self._problem(fields, where, chunk.split, self._options)
            left_out.update(problem.left_out)
            if problem.name is not None:
                names.append((hash_texts(problem.name), problem.name, where))
            if problem.examples:
                table = tables.setdefault(problem.split, _Examples())
                for example in problem.examples:
                    table.add(example)
                if problem.tests:
                    # A member a problem: the file can be read from the middle, and `zcat` reads it whole.
                    line = json.dumps(problem.tests, ensure_ascii=False) + "\n"
                    tests.append(gzip.compress(line.encode(), 1, mtime=0))
        arrow = {split: table.arrow(self._tokenizer, self._type) for split, table in tables.items()}
        return Converted(
            prompts={split: prompts for split, (prompts, _) in arrow.items()},
            solutions={split: solutions for split, (_, solutions) in arrow.items()},
            names=names,
            tests=b"".join(tests),
            left_out=left_out,
            next_row=chunk.next_row,
            n_rows=n_rows,
            n_bytes=chunk.bytes,
        )


class _Examples:
    """Examples of a split, each prompt once."""

    def __init__(self) -> None:
        self._prompts: dict[tuple[str, str, str, str], int] = {}
        self._examples: list[Example] = []  # one of each prompt
        self._rows: list[tuple[int, bool, str, int]] = []

    def add(self, example: Example) -> None:
        metadata = json.dumps(example.metadata, ensure_ascii=False)
        number = self._prompts.setdefault(
            (example.task_id, example.instruction, example.input, metadata), len(self._prompts)
        )
        if number == len(self._examples):
            self._examples.append(example)
        key = hash_texts(example.task_id, example.output)
        self._rows.append((number, example.is_correct, example.output, key))

    def arrow(self, tokenizer: Any, dtype: pa.DataType) -> tuple[pa.RecordConverted, pa.RecordConverted]:
        """Prompts and solutions in the columns of `wmtp_jax.data.store`."""
        number, is_correct, output, key = zip(*self._rows, strict=True)
        names, instructions, inputs, metadata = zip(*self._prompts, strict=True)
        prompt_tokens = encode_prompts(tokenizer, self._examples) if tokenizer else [()] * len(names)
        tokens = encode_responses(tokenizer, output) if tokenizer else [()] * len(output)
        prompts = pa.record_batch(
            {
                "task_id": pa.array(names, pa.string()),
                "key": pa.array([hash_texts(name) for name in names], pa.int64()),
                "instruction": pa.array(instructions, pa.string()),
                "input": pa.array(inputs, pa.string()),
                "metadata": pa.array(metadata, pa.string()),
                "difficulty": pa.array([_difficulty(example) for example in self._examples], pa.int64()),
                "tokens": _lists(prompt_tokens, dtype),
            }
        )
        solutions = pa.record_batch(
            {
                "prompt": pa.array(number, pa.int32()),
                "is_correct": pa.array(is_correct, pa.bool_()),
                "output": pa.array(output, pa.string()),
                "key": pa.array(key, pa.int64()),
                "tokens": _lists(tokens, dtype),
            }
        )
        return prompts, solutions


def _lists(arrays: Iterable[Any], dtype: pa.DataType) -> pa.ListArray:
    arrays = list(arrays)
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    values = np.concatenate([np.asarray(array, dtype.to_pandas_dtype()) for array in arrays])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, dtype))


def _difficulty(example: Example) -> int:
    difficulty = example.metadata.get("difficulty")
    if isinstance(difficulty, float) and difficulty.is_integer():  # as pandas writes whole numbers
        difficulty = int(difficulty)
    return difficulty if isinstance(difficulty, int) and abs(difficulty) < 2**63 else 0


def _rows(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    """Place and fields of each row."""
    if isinstance(chunk.rows, list):
        for i, line in enumerate(chunk.rows):
            if line.strip():
                yield chunk.where(i), parse_json(line, chunk.where(i))
        return
    try:
        rows = chunk.rows.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check that its strings are UTF-8
        columns = [column.cast(_binary(column.type)) for column in chunk.rows.columns]
        rows = pa.record_batch(columns, names=chunk.rows.schema.names).to_pylist()
    for i, fields in enumerate(rows):
        yield chunk.where(i), _decode(fields)


def _binary(dtype: pa.DataType) -> pa.DataType:
    """The type with bytes in the place of strings."""
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return pa.large_binary()
    if pa.types.is_dictionary(dtype):
        return _binary(dtype.value_type)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return pa.large_list(_binary(dtype.value_type))
    if pa.types.is_struct(dtype):
        return pa.struct([(field.name, _binary(field.type)) for field in dtype])
    return dtype


def _decode(value: Any) -> Any:
    """Values of Parquet as those of JSON: bytes as text (what is no UTF-8 as lone surrogates), no entries of null."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decode(item) for item in value] if value and not isinstance(value[0], str | int | float) else value
    if isinstance(value, dict):
        return {name: _decode(item) for name, item in value.items() if item is not None}  # null: there is none
    return value


def convert(chunks: Iterable[Chunk], options: Options, tokenizer: Path | None, workers: int) -> Iterator[Converted]:
    """Convertedes of the chunks in their order, made by ``workers`` processes; by this one, where it is 1.

    Raises:
      UserError: a row that is not as it should be.
      Failure: a process was killed.
    """
    if workers == 1:
        converter = Converter(options, tokenizer)
        for chunk in chunks:
            yield converter(chunk)
        return
    # spawn: a forked copy of a program with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (options, tokenizer)) as pool:
        waiting: deque[Future[Converted]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_convert, chunk))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise Failure(
                "a worker process was killed (was there too little memory?); the same command goes on from the last "
                "finished part, with fewer --workers if need be"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_converter: Converter


def _start_worker(options: Options, tokenizer: Path | None) -> None:
    global _converter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core already
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _converter = Converter(options, tokenizer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # it was killed; a worker would wait for it for ever


def _convert(chunk: Chunk) -> Converted:
    return _converter(chunk)
