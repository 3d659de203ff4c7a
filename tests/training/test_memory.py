"""Levers of memory: they change where and how things are kept, and not what is learned."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmtp_jax.config import TrainingSettings
from wmtp_jax.errors import UserError
from wmtp_jax.training.metrics_file import read_metrics
from wmtp_jax.training.optimizer import make_optimizer

SHORT = ("training.n_epochs=1", "training.max_steps=4", "checkpoint.save_every_steps=2")


def losses(folder: Path) -> dict[tuple[int, str], float]:
    lines = read_metrics(folder)
    return {(line["step"], key): line[key] for line in lines for key in line if key in ("train/loss", "val/loss")}


@pytest.fixture(scope="module")
def plain(train_command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    train_command(folder, *SHORT)
    return folder


@pytest.mark.parametrize(
    "levers",
    [
        ("training.offload_optimizer=true",),
        ("training.remat=dots", "training.unroll_layers=true"),
    ],
    ids=lambda levers: levers[0],
)
def test_a_run_goes_on_under_other_levers(plain, train_command, tmp_path, levers):
    """Kept elsewhere, or computed again: the rest of the run is the same."""
    shutil.copytree(plain, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    assert train_command(tmp_path / "run", *SHORT, *levers)["first_step"] == 2
    ours, theirs = losses(tmp_path / "run"), losses(plain)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-5, err_msg=str(key))


def test_offloaded_moments_lie_in_the_memory_of_the_host(train_command, tmp_path, monkeypatch):
    from wmtp_jax.training import loop

    kinds = []
    init = loop._Trainer.fresh_state

    def look(trainer):
        state = init(trainer)
        kinds.extend({leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim})
        kinds.extend({leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)})
        return state

    monkeypatch.setattr(loop._Trainer, "fresh_state", look)
    train_command(tmp_path / "run", *SHORT, "training.offload_optimizer=true", "training.max_steps=1")
    assert kinds == ["pinned_host", "device"]


def test_moments_in_sixteen_bits():
    """Half the bytes; computed in float32, so one step differs by the rounding of what is kept."""
    params = {"w": jnp.linspace(-1.0, 1.0, 64)}
    updates = {}
    for dtype in ("float32", "bfloat16"):
        settings = TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1e-2, moments_dtype=dtype)
        optimizer = make_optimizer(settings, lambda _: 1e-2)
        state = optimizer.init(params)
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert {leaf.dtype for leaf in moments} == {jnp.dtype(dtype)}
        for number in range(5):
            gradient = {"w": jnp.cos(jnp.arange(64.0) + number)}
            change, state = optimizer.update(gradient, state, params)
        assert change["w"].dtype == jnp.float32
        updates[dtype] = np.asarray(change["w"])
    difference = np.abs(updates["bfloat16"] - updates["float32"]).max() / np.abs(updates["float32"]).max()
    assert 0 < difference < 2e-2


def test_an_attention_kernel_for_other_devices_is_refused(train_command, tmp_path):
    with pytest.raises(UserError, match=r"model\.attention: attention kernel cudnn: it needs an NVIDIA GPU"):
        train_command(tmp_path / "run", *SHORT, "model.attention=cudnn")
    assert not (tmp_path / "run").exists()
