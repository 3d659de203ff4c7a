"""Scores every token once with a frozen model: ``python -m wmtp_jax.score --model DIR --data DIR --output FILE``.

A critic gives values, a reference cross-entropies. Training reads them with ``weighting.scores``. Starting
again continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmtp_jax.console import Steps, err, out, print_json, table
from wmtp_jax.data.scores import ScoreFacts, ScoreFile, join_parts, write_part
from wmtp_jax.errors import Failure, UserError, run_command
from wmtp_jax.files import open_job

if TYPE_CHECKING:
    from wmtp_jax.data.store import Split

EPILOG = """examples:
  python -m wmtp_jax.score --model storage/checkpoints/critic/critic-micro --data storage/datasets_v2/mini \\
      --output storage/scores/critic-micro.arrow --max-length 320
  python -m wmtp_jax.score --model storage/checkpoints/reference/reference-micro --data storage/datasets_v2/mini \\
      --output storage/scores/reference-micro.arrow --stage rho1 --config configs/rho1/micro.yaml

With --stage, only the solutions that such a run draws are scored, up to its dataset.max_length."""
DTYPES = ("float32", "bfloat16")
_AT_ONCE = 512  # solutions that are scored and written together


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    figures = _score(args)
    if args.json:
        print_json(figures)
    else:
        rows = [
            ["solutions", f"{figures['solutions']:,}"],
            ["left out (too long)", f"{figures['left_out_too_long']:,}"],
            ["tokens", f"{figures['tokens']:,}"],
            ["mean score", f"{figures['mean']:.4f}"],
            ["time of this command", f"{figures['seconds']:.0f} s"],
        ]
        out.print(table(f"Scores of {figures['kind']} {args.model}", ["", ""], rows))
        out.print(f"written to {args.output}", highlight=False, soft_wrap=True)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.score",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="run directory (its best step; @latest, @<step>) or model")
    parser.add_argument("--data", type=Path, required=True, help="processed data set")
    parser.add_argument("--output", type=Path, required=True, help="file of scores to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of other scores")
    parser.add_argument(
        "--kind", choices=("critic", "reference"), help="values or cross-entropies (default: values, if it gives any)"
    )
    parser.add_argument("--stage", help="score only the training solutions of a run: of this stage, ...")
    parser.add_argument(
        "--config", type=Path, help="... with this settings file (default: the stage's production preset)"
    )
    parser.add_argument(
        "--override", action="append", default=[], metavar="a.b=value", help="... and this change; may be repeated"
    )
    parser.add_argument("--max-length", type=int, help="leave longer solutions out (default: 2048, or the run's)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a device reads at once (default: 8)")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share the model's weights (default: 1)")
    parser.add_argument("--dtype", choices=DTYPES, help="of matrix products (default: the run's, or float32)")
    parser.add_argument(
        "--param-dtype", choices=DTYPES, help="of the weights in memory (default: the run's, or float32)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args(argv)


def _score(args: argparse.Namespace) -> dict[str, Any]:
    import jax

    from wmtp_jax.data.store import TOKENIZER, data_fingerprint, open_split
    from wmtp_jax.data.tokenize import load_tokenizer
    from wmtp_jax.load import find_model, model_fingerprint
    from wmtp_jax.parallel.mesh import make_mesh
    from wmtp_jax.processes import refuse_processes
    from wmtp_jax.training.inputs import check_tokens
    from wmtp_jax.training.scoring import check_scorer
    from wmtp_jax.training.stages import find_stage

    started = time.perf_counter()
    refuse_processes("python -m wmtp_jax.score")
    for name in ("batch_size", "fsdp", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be 1 or more")
    source = find_model(args.model)
    kind = args.kind or ("critic" if source.config.value_head else "reference")
    if args.stage is not None:
        asked = find_stage(args.stage).scorer
        if asked is None or args.kind not in (None, asked):
            raise UserError(
                f"--stage {args.stage}: reads {f'a {asked}' if asked else 'no'} scores"
                + (f", not those of a {args.kind}; leave --kind out" if asked else "; name verifiable or rho1")
            )
        kind = asked
    check_scorer(source, kind, "--model")
    split = open_split(args.data, "train")
    chosen, max_length, model = _chosen(args, split)
    args.dtype = args.dtype or (model.compute_dtype if model else "float32")
    args.param_dtype = args.param_dtype or (model.param_dtype if model else "float32")
    named = model.tokenizer if model else None
    folder = source.tokenizer or named or args.data / TOKENIZER
    tokenizer = check_tokens(args.data, load_tokenizer(folder), folder, source.config.vocab_size, [split.name])
    job = hashlib.sha256(chosen.astype(np.int64).tobytes())
    job.update(json.dumps([_AT_ONCE, args.dtype, args.param_dtype]).encode())
    facts = ScoreFacts(
        kind=kind,
        model=model_fingerprint(source),
        data=data_fingerprint(args.data),
        tokenizer=tokenizer,
        max_length=max_length,
        job=job.hexdigest(),
    )
    if args.output.is_dir():
        raise UserError(f"{args.output}: is a folder; --output names a file")
    if args.output.exists():
        finished = _is_finished(args.output, facts)
        if not finished and not args.overwrite:
            raise UserError(f"{args.output}: exists already and holds something else; --overwrite replaces it")
        if finished and not args.overwrite:
            err.print(f"{args.output} is finished", highlight=False, soft_wrap=True)
            return _figures(args, kind, len(chosen), started)
    try:
        mesh = make_mesh((-1, args.fsdp, 1))
    except ValueError as error:
        raise UserError(f"--fsdp {args.fsdp}: {error}") from error
    parts = args.output.with_name(args.output.name + ".partial")
    try:
        with open_job(parts, facts._asdict(), overwrite=args.overwrite):
            with jax.set_mesh(mesh):
                _write_parts(parts, split, chosen, lambda: _Scorer(source, kind, mesh, args, max_length))
            whole = parts / "whole.writing"
            join_parts(sorted(parts.glob("*.arrow")), whole, facts)
            n_scored = ScoreFile(whole).figures()["solutions"]
            if n_scored:
                whole.replace(args.output)
            shutil.rmtree(parts)
        if not n_scored:
            raise UserError(f"every solution is longer than {max_length} tokens; raise --max-length")
    except KeyboardInterrupt:
        err.print("what is done is kept; the same command continues", highlight=False)
        raise
    except OSError as error:
        raise Failure(
            f"{args.output}: cannot be written ({error.strerror or error}); what is done is kept in {parts}, and "
            "the same command continues"
        ) from error
    return _figures(args, kind, len(chosen), started)


def _figures(args: argparse.Namespace, kind: str, asked: int, started: float) -> dict[str, Any]:
    figures = ScoreFile(args.output).figures()
    return {
        "kind": kind,
        **figures,
        "left_out_too_long": asked - figures["solutions"],
        "seconds": time.perf_counter() - started,
        "output": str(args.output),
    }


def _is_finished(output: Path, facts: ScoreFacts) -> bool:
    try:
        return ScoreFile(output).facts == facts
    except UserError:  # something else lies there
        return False


def _write_parts(parts: Path, split: Split, chosen: np.ndarray, make_scorer: Callable[[], _Scorer]) -> None:
    """Scores what is not there yet, some solutions at a time."""
    chunks = [chosen[start : start + _AT_ONCE] for start in range(0, len(chosen), _AT_ONCE)]
    missing = {number for number in range(len(chunks)) if not (parts / f"{number:06}.arrow").is_file()}
    if len(missing) < len(chunks):
        err.print(f"continuing: {len(chunks) - len(missing):,} of {len(chunks):,} parts are there", highlight=False)
    scorer = make_scorer() if missing else None
    with Steps(f"scoring {split.name}", len(chosen)) as progress:
        for number, chunk in enumerate(chunks):
            if number in missing:
                assert scorer is not None
                write_part(parts / f"{number:06}.arrow", split.name, *scorer(split, chunk))
            progress.advance(len(chunk))


def _chosen(args: argparse.Namespace, split: Any) -> tuple[np.ndarray, int, Any]:
    """Numbers of the solutions to score, ascending, the longest that counts, and the run's model settings."""
    from wmtp_jax.settings_file import load_settings, production_preset
    from wmtp_jax.training.inputs import draw_examples
    from wmtp_jax.training.stages import find_stage

    if args.stage is None:
        if args.config or args.override:
            raise UserError("--config and --override describe a run: name its --stage too")
        return np.arange(len(split)), args.max_length or 2048, None
    settings = load_settings(args.config or production_preset(args.stage), args.override)
    if args.max_length is not None:
        raise UserError("--max-length: with --stage it is the run's dataset.max_length; leave it out")
    chosen, _ = draw_examples(find_stage(args.stage), settings, split, "data_sampling.n_samples")
    return np.sort(chosen.reshape(-1)), settings.dataset.max_length, settings.model


class _Scorer:
    """The frozen model, and the one compiled function over rows of it."""

    def __init__(self, source: Any, kind: str, mesh: Any, args: argparse.Namespace, max_length: int):
        import jax

        from wmtp_jax.load import load_params
        from wmtp_jax.models import store
        from wmtp_jax.parallel.sharding import batch_sharding
        from wmtp_jax.training.program import attention_options
        from wmtp_jax.training.scoring import make_scorer

        attention = attention_options(source.config, mesh, dtype=args.dtype, length=max_length, packed=True)
        graphdef, shapes = store.build(source.config, dtype=args.dtype, param_dtype=args.param_dtype, **attention)
        self._params = load_params(source, shapes, mesh)
        self._mesh, self._sharding = mesh, batch_sharding(mesh)
        self._score = jax.jit(make_scorer(graphdef, kind))
        self._rows = args.batch_size * mesh.shape["data"] * mesh.shape["fsdp"]
        self._max_length = max_length

    def __call__(self, split: Any, numbers: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Numbers of the solutions that are not too long, and the scores of their tokens."""
        import jax

        from wmtp_jax.data.batches import RowSource, validation_batches
        from wmtp_jax.parallel.sharding import place_rows

        numbers = numbers[split.lengths[numbers] <= self._max_length]
        source = RowSource(split, numbers, self._max_length, packing=True, seed=0)
        result: dict[int, np.ndarray] = {}
        for batch in validation_batches(len(source), self._rows):
            rows = place_rows(source.__getitem__, batch, self._sharding)
            with jax.set_mesh(self._mesh):
                scores = jax.device_get(self._score(self._params, rows.tokens, rows.segment_ids))
            for number, row in zip(batch[batch >= 0], scores, strict=False):
                documents = source.documents(number)
                ends = np.cumsum(split.lengths[documents])
                for document, part in zip(documents, np.split(row[: ends[-1]], ends[:-1]), strict=True):
                    result[int(document)] = part.astype(np.float32)
                    if not np.isfinite(part).all():
                        raise Failure(
                            f"solution {int(document) + 1} of {split.name} has scores that are not finite: "
                            "the model is damaged, or overflows in --dtype"
                        )
        return numbers, [result[int(number)] for number in numbers]


if __name__ == "__main__":
    run_command(main)
