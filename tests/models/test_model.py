"""The model by itself: packing, dtypes, remat, unrolling, document positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmtp_jax.models import store
from wmtp_jax.models.attention import document_mask
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.layers import document_positions
from wmtp_jax.models.mtp import MTPTransformer

CONFIG = ModelConfig(dim=32, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=50, ffn_dim=64, n_future_tokens=2)


@pytest.fixture(scope="module")
def model() -> MTPTransformer:
    return MTPTransformer(CONFIG, rngs=nnx.Rngs(0))


def test_packed_documents_equal_documents_alone(model):
    """Neither attention nor positions cross a document's border."""
    rng = np.random.default_rng(0)
    lengths = [5, 9, 1, 6]
    documents = [rng.integers(0, 50, length) for length in lengths]
    row = np.concatenate([*documents, np.zeros(3, int)])[None]
    segments = np.concatenate([np.full(n, i) for i, n in [*enumerate(lengths, start=1), (0, 3)]])[None]
    packed = model(row, segments)
    start = 0
    for document in documents:
        alone = model(document[None])
        np.testing.assert_allclose(packed[:, start : start + len(document)], alone, atol=1e-5, rtol=0)
        start += len(document)


def test_no_gradient_flows_between_documents(model):
    segments = jnp.array([[1, 1, 1, 2, 2, 2]])
    graphdef, state = nnx.split(model, nnx.Param)

    def second_document(params):
        return nnx.merge(graphdef, params)(jnp.arange(6)[None], segments)[0, 3:].sum()

    gradient = jax.grad(second_document)(nnx.to_pure_dict(state))["tok_embeddings"]["embedding"]
    assert float(jnp.abs(gradient[:3]).max()) == 0.0
    assert float(jnp.abs(gradient[3:6]).max()) > 0.0


def test_document_positions_and_mask():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(document_positions(segments), [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]])
    mask = np.asarray(document_mask(segments))[0, 0]
    assert mask[3].tolist() == [False, False, True, True, False, False]


def test_first_heads_only(model):
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(model(tokens, n_heads=1)[:, :, 0], model(tokens)[:, :, 0])


@pytest.mark.parametrize(
    "options", [{"remat": "full"}, {"remat": "dots"}, {"remat": "attention"}, {"unroll": True}], ids=str
)
def test_remat_and_unroll_change_nothing(model, options):
    graphdef, _ = store.build(CONFIG, **options)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tokens = jnp.arange(12)[None]

    def total(params, graphdef):
        return jax.nn.logsumexp(nnx.merge(graphdef, params)(tokens)).sum()

    plain = jax.value_and_grad(total)(params, nnx.split(model, nnx.Param)[0])
    other = jax.value_and_grad(total)(params, graphdef)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, other)


def test_bfloat16_compute_keeps_float32_weights_and_logits():
    model = MTPTransformer(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    exact = MTPTransformer(CONFIG, rngs=nnx.Rngs(0))
    tokens = jnp.arange(8)[None]
    assert model(tokens).dtype == jnp.float32
    assert model.head_hidden(tokens).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model(tokens), exact(tokens), atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30}, "dim 30 is not a multiple of n_heads 4"),
        ({"dim": 36}, "must be even"),
        ({"n_kv_heads": 3}, "not a multiple of n_kv_heads"),
        ({"n_future_tokens": 5}, "must be at least n_future_tokens"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_architecture_that_does_not_fit(changes, message):
    import dataclasses

    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_store_round_trip(model, tmp_path):
    from wmtp_jax.parallel.mesh import make_mesh

    _, shapes = store.build(CONFIG)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    store.write_description(tmp_path, CONFIG, {"start": "test"})
    store.write_params(tmp_path, params)
    assert store.read_description(tmp_path) == (CONFIG, None, {"start": "test"}, None)
    back = store.read_params(tmp_path, shapes, make_mesh((1, 4, 1)))
    jax.tree.map(np.testing.assert_array_equal, params, back)
    assert len(back["output"]["kernel"].sharding.device_set) == 4
    with pytest.raises(ValueError, match="no parameters"):
        store.read_params(tmp_path / "absent", shapes, make_mesh((1, 4, 1)))
    counts = store.count_params(shapes)
    assert counts["total"] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_published_7b_has_as_many_parameters_as_published():
    config = ModelConfig(
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        vocab_size=32000,
        ffn_dim=11008,
        n_future_tokens=4,
    )
    assert store.count_params(store.build(config)[1])["total"] == 6_738_415_616
