"""The multi-token-prediction LLaMA (Gloeckle et al. 2024, arXiv 2404.19737, section 2).

One trunk reads the tokens; n head blocks, in parallel, read the trunk's output; all heads share one
final norm and one output matrix. Head k at position t predicts the token at t + k.

Shapes in names: B batch, S sequence, n heads, D width, V vocabulary, L trunk blocks.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from wmtp_jax.models.attention import Documents, documents, keeps_attention
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.layers import Block, document_positions, linear, rotary_angles
from wmtp_jax.models.value import ValueHead
from wmtp_jax.parallel.sharding import replicate, shard_batch

# What the backward pass makes again of each trunk block: policies of `jax.checkpoint`.
REMAT: dict[str, Any] = {
    "none": None,  # nothing: everything is kept
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, keeps_attention
    ),
    "attention": keeps_attention,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class MTPTransformer(nnx.Module):
    """Trunk and prediction heads. ``model(tokens)`` gives the logits of every head.

    Args:
      config: the architecture.
      rngs: seeds of the random weights.
      dtype: of the computation (matrix products); norms, softmax and logits are float32.
      param_dtype: of the weights; those of the value head are float32, as what it computes.
      remat: what the backward pass computes again instead of keeping it: ``none``; ``dots``, all but products with
        weights and attention; ``attention``, all but attention; ``full``, each block. Unless it is ``none`` the head
        blocks are computed again whole, one at a time, so that the activations of one exist and not of n.
      unroll: compile every trunk block by itself instead of one block in a loop: faster steps
        on a CPU, longer compilation.
      attention: the kernel, one of `wmtp_jax.models.attention.KERNELS`.
      packed: rows hold several documents. False: each row is one, followed by padding, so that a causal kernel
        needs no document numbers; what stands at padding has no meaning then.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        unroll: bool = False,
        attention: str = "xla",
        packed: bool = True,
    ):
        self.config, self.remat, self.unroll = config, remat, unroll
        self.attention, self.packed = attention, packed
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.tok_embeddings = nnx.Embed(
            config.vocab_size,
            config.dim,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
            **dtypes,
        )
        # Blocks are stacked: every leaf has a leading axis of n_trunk_layers or n_future_tokens. A part that
        # the architecture has none of is None: it holds no parameters.
        self.trunk = _stack(config, config.n_trunk_layers, rngs, kernel=attention, **dtypes)
        self.heads = _stack(config, config.n_future_tokens, rngs, kernel=attention, **dtypes)
        self.norm = nnx.RMSNorm(config.dim, epsilon=config.norm_eps, rngs=rngs, **dtypes)
        has_output = config.n_future_tokens > 0 and not config.tie_embeddings
        self.output = linear(config.dim, config.vocab_size, rngs, **dtypes) if has_output else None
        self.value_head = ValueHead(config.value_head, config.dim, rngs=rngs) if config.value_head else None

    def __call__(self, tokens_BS: Array, segment_ids_BS: Array | None = None, n_heads: int | None = None) -> Array:
        """Logits (B, S, n, V) float32.

        Args:
          tokens_BS: int token ids in [0, V).
          segment_ids_BS: int document numbers of a packed row; attention, positions and targets
            stay inside a document. None: each row is one document.
          n_heads: compute only the first ``n_heads`` heads (1 for next-token decoding).
        """
        kernel_DV = self.output_kernel
        hidden_nBSD = self.head_hidden(jnp.asarray(tokens_BS), segment_ids_BS, n_heads)
        logits_nBSV = jnp.einsum("nbsd,dv->nbsv", hidden_nBSD, kernel_DV, preferred_element_type=jnp.float32)
        if (low_rank := self.output_low_rank(hidden_nBSD)) is not None:
            logits_nBSV += jnp.einsum("nbsr,rv->nbsv", *low_rank, preferred_element_type=jnp.float32)
        return jnp.moveaxis(logits_nBSV, 0, 2)

    @property
    def output_kernel(self) -> Array:
        """The output matrix all heads share, (D, V), in the dtype of the computation.

        Raises:
          ValueError: the model has no prediction heads; see `values`.
        """
        if not self.config.n_future_tokens:
            raise ValueError("this model gives values, not tokens: call model.values(tokens)")
        if self.output is None:  # tied
            return self.tok_embeddings.embedding[...].astype(self.tok_embeddings.dtype).T
        return self.output.kernel[...].astype(self.output.dtype)

    def output_low_rank(self, hidden_nBSD: Array) -> tuple[Array, Array] | None:
        """(n, B, S, r) and (r, V), whose product is added to the logits: the adapter of the output matrix, if any."""
        if self.output is None or self.output.adapter is None:
            return None
        adapter = self.output.adapter
        return adapter.down(hidden_nBSD), adapter.lora_b[...].astype(hidden_nBSD.dtype)

    def trunk_hidden(
        self, tokens_BS: Array, segment_ids_BS: Array | None = None, attention_mask_BS: Array | None = None
    ) -> Array:
        """The trunk's output (B, S, D), before the final norm: what every head reads.

        Args:
          tokens_BS, segment_ids_BS: as in `__call__`.
          attention_mask_BS: bool, for rows of one document: where it is False nothing attends to.
        """
        # The table is gathered before the lookup: looking up in a sharded one replicates the activations.
        table_VD = replicate(self.tok_embeddings.embedding[...].astype(self.tok_embeddings.dtype))
        x_BSD = shard_batch(jnp.take(table_VD, tokens_BS, axis=0))
        return self._run(self.trunk, x_BSD, self._context(tokens_BS, segment_ids_BS, attention_mask_BS))

    def values(
        self, tokens_BS: Array, segment_ids_BS: Array | None = None, attention_mask_BS: Array | None = None
    ) -> Array:
        """The value head's output after reading ``x[..t]``, (B, S) float32, off the normed trunk output.

        Args: as in `trunk_hidden`.

        Raises:
          ValueError: the model has no value head.
        """
        return self.trunk_values(self.trunk_hidden(jnp.asarray(tokens_BS), segment_ids_BS, attention_mask_BS))

    def trunk_values(self, trunk_BSD: Array, dropout: float = 0.0, key: Array | None = None) -> Array:
        """Values (B, S) float32 off the trunk's output; `ValueHead` says what ``dropout`` and ``key`` are.

        Raises:
          ValueError: the model has no value head.
        """
        if self.value_head is None:
            raise ValueError("this model has no value head: model.architecture.value_head is not set")
        return self.value_head(self.norm(trunk_BSD), dropout, key)

    def head_hidden(
        self,
        tokens_BS: Array,
        segment_ids_BS: Array | None = None,
        n_heads: int | None = None,
        trunk_BSD: Array | None = None,
    ) -> Array:
        """Normed hidden states of the heads (n, B, S, D): the input of the output matrix.

        Args:
          tokens_BS, segment_ids_BS, n_heads: as in `__call__`.
          trunk_BSD: the trunk's output, where it is there already.
        """
        if trunk_BSD is None:
            trunk_BSD = self.trunk_hidden(tokens_BS, segment_ids_BS)
        context = self._context(tokens_BS, segment_ids_BS)
        graphdef, stacked = nnx.split(cast(Block, self.heads))
        if n_heads is not None:
            stacked = jax.tree.map(lambda leaf: leaf[:n_heads], stacked)

        def head(_: None, block: Any) -> tuple[None, Array]:
            return None, self.norm(nnx.merge(graphdef, block)(trunk_BSD, *context))

        # One head after another, not batched (Gloeckle et al. 2024, section 2): what is in flight is one head's.
        body = head if self.remat == "none" else jax.checkpoint(head)
        return jax.lax.scan(body, None, stacked, unroll=self.unroll)[1]

    def _context(
        self, tokens_BS: Array, segment_ids_BS: Array | None, attention_mask_BS: Array | None = None
    ) -> tuple[Any, Documents]:
        """Rotary angles, and what attention must know of the documents; all blocks share them."""
        if segment_ids_BS is None:
            positions_BS = jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None]
        else:
            positions_BS = document_positions(segment_ids_BS)
        numbers_BS = segment_ids_BS if self.packed else None
        return rotary_angles(positions_BS, self.config), documents(numbers_BS, self.attention, attention_mask_BS)

    def _run(self, blocks: Block | None, x_BSD: Array, context: tuple[Any, Documents]) -> Array:
        """Applies stacked blocks one after another."""
        if blocks is None:
            return x_BSD
        graphdef, stacked = nnx.split(blocks)

        def apply(x: Array, block: Any) -> tuple[Array, None]:
            return shard_batch(nnx.merge(graphdef, block)(x, *context)), None

        body = apply if self.remat == "none" else jax.checkpoint(apply, policy=REMAT[self.remat])
        return jax.lax.scan(body, x_BSD, stacked, unroll=self.unroll)[0]


def _stack(config: ModelConfig, count: int, rngs: nnx.Rngs, **options: Any) -> Block | None:
    if not count:
        return None

    @nnx.split_rngs(splits=count)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: None})
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs=rngs, **options)

    return make(rngs)
