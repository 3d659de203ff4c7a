"""What tests share: the golden numbers, the folder of real data, a small data set."""

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
