"""What tests share: the golden numbers, the folder of real data, a small data set, two commands."""

import contextlib
import io
import json
import os
from pathlib import Path

# Before jax starts: four devices on the CPU, so that sharding is tested in the same process.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden"


@pytest.fixture(scope="session")
def objectives() -> dict[str, np.ndarray]:
    """Inputs and values of every objective, see tests/golden/README.md."""
    with np.load(GOLDEN / "objectives.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets; they are no part of the repository."""
    path = ROOT.parent / "shared/data"
    if not path.is_dir():
        pytest.skip(f"real data is not at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A processed data set of 80 problems with a tokenizer, made by the project's own commands."""
    from wmtp_jax import prepare
    from wmtp_jax.data.tokenize import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
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


@pytest.fixture(scope="session")
def changed_data(tiny_data: Path, tmp_path_factory) -> Path:
    """The same with another solution of one problem."""
    from wmtp_jax import prepare

    folder = tmp_path_factory.mktemp("changed")
    (folder / "raw").mkdir()
    for path in (tiny_data.parent / "raw").iterdir():
        (folder / "raw" / path.name).write_text(path.read_text().replace("print(x + 3)", "print(x + 5)"))
    raw, data, tokenizer = map(str, (folder / "raw", folder / "data", tiny_data / "tokenizer"))
    prepare.main(["--dataset", "codecontests", "--source", raw, "--tokenizer", tokenizer, "--output", data, "--json"])
    return folder / "data"


def _programs(row: dict) -> list[str]:
    return [*row["solutions"]["solution"], *row["incorrect_solutions"]["solution"]]


@pytest.fixture(scope="session")
def convert():
    """Runs ``python -m conversion`` in this process; returns the figures of ``--json``."""
    from conversion.__main__ import main

    def run(*args) -> dict:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert main([*map(str, args), "--json"]) == 0
        return json.loads(output.getvalue())

    return run


@pytest.fixture(scope="session")
def train_arguments(tiny_data: Path, tmp_path_factory):
    """Arguments of ``wmtp_jax.train`` for the tiny data and a tiny model.

    A stage that starts from ``model.path`` takes the model's architecture from there.
    """
    cache = tmp_path_factory.mktemp("xla")
    overrides = [
        f"dataset.path={tiny_data}",
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

    def arguments(save_dir: Path | None, *more: str, stage: str = "baseline") -> list[str]:
        place = [f"checkpoint.save_dir={save_dir}"] if save_dir else []
        given = any(o.startswith("model.path=") for o in more)
        usual = [o for o in overrides if not (given and o.startswith("model.architecture"))]
        usual += ["model.architecture=null"] if given else []
        chosen = [part for o in (*usual, *place, *more) for part in ("--override", o)]
        return ["--stage", stage, "--config", str(ROOT / f"configs/{stage}/micro.yaml"), *chosen]

    return arguments


@pytest.fixture(scope="session")
def train_command(train_arguments):
    """Runs ``wmtp_jax.train`` with `train_arguments`; returns the figures of ``--json``."""
    from wmtp_jax import train

    def run(save_dir: Path | None, *more: str, flags: tuple[str, ...] = (), stage: str = "baseline") -> dict:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = train.main([*train_arguments(save_dir, *more, stage=stage), *flags, "--json"])
        assert code == 0
        return json.loads(output.getvalue())

    return run
