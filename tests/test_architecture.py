"""The numeric core is pure: it imports no settings, no console, no messages for people, no tracking."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The libraries of the core come first, and what they bring themselves (flax: rich) is forgotten then.
SCRIPT = """
import importlib, pkgutil, sys
import flax.nnx, jax, optax, orbax.checkpoint
foreign = ("pydantic", "rich", "mlflow", *("wmtp_jax." + name for name in (
    "config", "console", "errors", "files", "settings_file")))
for name in list(sys.modules):
    if name.split(".")[0] in foreign:
        del sys.modules[name]
for layer in ("models", "losses", "weighting", "parallel", "inference"):
    package = importlib.import_module("wmtp_jax." + layer)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
        impure = [name for name in foreign if name in sys.modules]
        if impure:
            sys.exit(f"{module.name} imports {impure}")
"""


def test_the_numeric_core_is_pure():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    for module in ("models.mtp", "losses.mtp", "weighting.td", "parallel.distributed", "inference.greedy"):
        assert f"wmtp_jax.{module}" in seen
