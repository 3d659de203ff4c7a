"""Meta's layout: logits and gradients against PyTorch and the golden numbers, and damaged input."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion_checkpoints import random_checkpoint
from flax import nnx

import wmtp_jax
from conversion import meta_mtp
from conversion.layout import tree_to_ours, tree_to_theirs
from conversion.source import open_source
from conversion.torch_reference import forward
from conversion.torch_reference import loss as reference_loss
from wmtp_jax.errors import UserError
from wmtp_jax.losses.cross_entropy import token_cross_entropy
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.models import store

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPES = {
    "as Meta's": {},
    "next token only": {"n_future_tokens": 1, "n_layers": 3},
    "eight heads": {"n_future_tokens": 8, "n_layers": 9},
    "grouped queries": {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3},
    "one key head, long rope": {"n_kv_heads": 1, "rope_theta": 500000.0, "norm_eps": 1e-6},
}


def load(directory: Path):
    source = open_source(directory)
    return source.config, tree_to_ours({k: t.read() for k, t in source.tensors.items()}, source.layout, source.config)


def loss_and_gradients(directory: Path, tokens: np.ndarray, mask: np.ndarray):
    """Our loss and its gradients by Meta's names."""
    config, params = load(directory)
    graphdef, _ = store.build(config)

    def loss(params):
        model = nnx.merge(graphdef, params)
        targets, valid = mtp_targets(tokens, jnp.ones_like(tokens), mask, config.n_future_tokens)
        ce = token_cross_entropy(model.head_hidden(tokens), model.output_kernel, targets)
        return mean_over_heads(head_sums(ce, jnp.ones_like(ce), valid), head_counts(valid))

    value, grads = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, params))
    return float(value), tree_to_theirs(grads, meta_mtp.LAYOUT, config)


@pytest.mark.parametrize("name", ["tiny_meta_mtp", "tiny_meta_mtp_gqa"])
def test_golden_logits_hidden_loss_and_gradient_norms(name: str):
    expected = np.load(GOLDEN / name / "expected.npz")
    model = wmtp_jax.load_model(GOLDEN / name)
    logits = model(expected["tokens"])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)
    hidden = model.norm(model.trunk_hidden(expected["tokens"]))
    np.testing.assert_allclose(hidden, expected["trunk_hidden_normed"], atol=1e-4, rtol=0)

    loss, grads = loss_and_gradients(GOLDEN / name, expected["tokens"], expected["labels"] >= 0)
    np.testing.assert_allclose(loss, expected["uniform_loss"], rtol=1e-5)
    norms = json.loads((GOLDEN / name / "expected_grad_norms.json").read_text())
    assert grads.keys() == norms.keys()
    for tensor, norm in norms.items():
        np.testing.assert_allclose(np.linalg.norm(grads[tensor]), norm, rtol=1e-5, err_msg=tensor)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_equals_pytorch_logits_and_gradients(changes: dict, tmp_path: Path):
    tensors = random_checkpoint(tmp_path, **changes)
    params = json.loads((tmp_path / "params.json").read_text())
    tokens = np.random.default_rng(1).integers(0, params["vocab_size"], (2, 17))
    for tensor in tensors.values():
        tensor.requires_grad_()
    theirs = forward(tensors, params, torch.from_numpy(tokens))
    their_loss = reference_loss(theirs, torch.from_numpy(tokens), first_target=5)
    their_loss.backward()

    ours = wmtp_jax.load_model(tmp_path)(tokens)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4, rtol=0)
    mask = np.broadcast_to(np.arange(17) >= 5, tokens.shape)
    loss, grads = loss_and_gradients(tmp_path, tokens, mask)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    for name, tensor in tensors.items():
        scale = float(tensor.grad.abs().max())
        np.testing.assert_allclose(grads[name], tensor.grad.numpy(), atol=1e-5 * scale, rtol=1e-4, err_msg=name)


def test_tree_to_theirs_is_the_inverse_bit_for_bit(tmp_path: Path):
    tensors = random_checkpoint(tmp_path, dtype=torch.bfloat16, n_kv_heads=2)
    config, params = load(tmp_path)
    back = tree_to_theirs(params, meta_mtp.LAYOUT, config)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype.name == "bfloat16"
        np.testing.assert_array_equal(back[name].view(np.int16), tensor.view(torch.int16).numpy())


def test_ffn_width_rule():
    assert meta_mtp.ffn_dim(4096, 256, 1.0) == 11008  # the published 7B
    assert meta_mtp.ffn_dim(64, 16, None) == 176
    assert meta_mtp.ffn_dim(64, 16, 1.3) == 224


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{", "not JSON"),
        ('{"dim": 48}', "'n_heads' is missing"),
        ('{"dim": 49, "n_layers": 5, "n_heads": 4, "vocab_size": 61}', "not a multiple of n_heads"),
        ("[]", "params.json"),
    ],
)
def test_bad_params_json(params: str, message: str, tmp_path: Path):
    random_checkpoint(tmp_path)
    (tmp_path / "params.json").write_text(params)
    with pytest.raises(UserError, match=message):
        wmtp_jax.load_model(tmp_path)
