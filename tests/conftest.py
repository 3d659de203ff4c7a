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
import tiny

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
    return tiny.make_data(tmp_path_factory.mktemp("tiny"))


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
    """Arguments of ``wmtp_jax.train`` for the tiny data and a tiny model."""
    cache = tmp_path_factory.mktemp("xla")
    overrides = tiny.overrides(tiny_data, cache)

    def arguments(save_dir: Path | None, *more: str, stage: str = "baseline") -> list[str]:
        place = [f"checkpoint.save_dir={save_dir}"] if save_dir else []
        return tiny.arguments(stage, overrides, *place, *more)

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
