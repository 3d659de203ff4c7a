"""A small data set and a small model: every stage runs on them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_data(folder: Path) -> Path:
    """Makes a processed data set of 80 problems with a tokenizer in ``folder``, by the project's own commands."""
    from wmtp_jax import prepare
    from wmtp_jax.data.tokenize import train_tokenizer

    for split, numbers in (("train", range(60)), ("valid", range(60, 80))):
        rows = [
            {
                "name": f"add-{n}",
                "description": f"Read a number and print it plus {n}.",
                "public_tests": {"input": ["1"], "output": [str(n + 1)]},
                "solutions": {
                    "language": [3, 3],
                    "solution": [f"x = int(input())\nprint(x + {n})", f"print({n} + int(input()))"],
                },
                "incorrect_solutions": {"language": [3], "solution": [f"print({n})"]},
            }
            for n in numbers
        ]
        (folder / "raw").mkdir(exist_ok=True)
        (folder / f"raw/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if split == "train":
            texts = [row["description"] + program for row in rows for program in _programs(row)]
            train_tokenizer(texts, 300, folder / "tokenizer")
    raw, tokenizer, data = map(str, (folder / "raw", folder / "tokenizer", folder / "data"))
    prepare.main(["--dataset", "codecontests", "--source", raw, "--tokenizer", tokenizer, "--output", data, "--json"])
    return folder / "data"


def _programs(row: dict) -> list[str]:
    return [*row["solutions"]["solution"], *row["incorrect_solutions"]["solution"]]


def overrides(data: Path, cache: Path) -> list[str]:
    """Settings of a run on ``data`` that make the model tiny; compiled programs are kept in ``cache``."""
    return [
        f"dataset.path={data}",
        "dataset.max_length=64",
        "data_sampling.n_samples=100",
        "data_sampling.n_validation_samples=20",
        "model.architecture.dim=32",
        "model.architecture.n_layers=4",
        "model.architecture.n_heads=4",
        "model.architecture.n_kv_heads=2",
        "model.architecture.ffn_dim=64",
        "model.architecture.n_future_tokens=2",
        "model.architecture.vocab_size=300",
        "training.batch_size=1",
        "training.warmup_ratio=0.1",
        "training.learning_rate=1e-2",
        "training.gradient_accumulation_steps=2",
        "training.unroll_layers=false",
        "runtime.mesh={data: 1, fsdp: 4, tensor: 1}",
        f"runtime.compilation_cache={cache}",
        "tracking.mlflow=false",
    ]


def arguments(stage: str, usual: list[str], *more: str) -> list[str]:
    """Arguments of ``wmtp_jax.train``: the stage's micro settings, changed by ``usual`` (`overrides`) and ``more``.

    A stage that starts from ``model.path`` takes the model's architecture from there.
    """
    if any(o.startswith("model.path=") for o in more):
        usual = [*(o for o in usual if not o.startswith("model.architecture")), "model.architecture=null"]
    chosen = [part for o in (*usual, *more) for part in ("--override", o)]
    return ["--stage", stage, "--config", str(ROOT / f"configs/{stage}/micro.yaml"), *chosen]
