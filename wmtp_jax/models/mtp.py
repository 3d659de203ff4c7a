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

from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.layers import Block, document_mask, document_positions, linear, rotary_angles
from wmtp_jax.models.value import ValueHead
from wmtp_jax.parallel.sharding import replicate, shard_batch


class MTPTransformer(nnx.Module):
    """Trunk and prediction heads. ``model(tokens)`` gives the logits of every head.

    Args:
      config: the architecture.
      rngs: seeds of the random weights.
      dtype: of the computation (matrix products); norms, softmax and logits are float32.
      param_dtype: of the weights.
      remat: recompute each block in the backward pass instead of keeping its activations.
      unroll: compile every trunk block by itself instead of one block in a loop: faster steps
        on a CPU, longer compilation.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        unroll: bool = False,
    ):
        self.config, self.remat, self.unroll = config, remat, unroll
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
        self.trunk = _stack(config, config.n_trunk_layers, rngs, dtypes)
        self.heads = _stack(config, config.n_future_tokens, rngs, dtypes)
        self.norm = nnx.RMSNorm(config.dim, epsilon=config.norm_eps, rngs=rngs, **dtypes)
        has_output = config.n_future_tokens > 0 and not config.tie_embeddings
        self.output = linear(config.dim, config.vocab_size, rngs, **dtypes) if has_output else None
        self.value_head = (
            ValueHead(config.value_head, config.dim, rngs=rngs, param_dtype=param_dtype) if config.value_head else None
        )

    def __call__(self, tokens_BS: Array, segment_ids_BS: Array | None = None, n_heads: int | None = None) -> Array:
        """Logits (B, S, n, V) float32.

        Args:
          tokens_BS: int token ids in [0, V).
          segment_ids_BS: int document numbers of a packed row; attention, positions and targets
            stay inside a document. None: each row is one document.
          n_heads: compute only the first ``n_heads`` heads (1 for next-token decoding).
        """
        kernel_DV = self.output_kernel
        hidden_BSnD = self.head_hidden(jnp.asarray(tokens_BS), segment_ids_BS, n_heads)
        logits_BSnV = jnp.einsum("bsnd,dv->bsnv", hidden_BSnD, kernel_DV, preferred_element_type=jnp.float32)
        if (low_rank := self.output_low_rank(hidden_BSnD)) is not None:
            logits_BSnV += jnp.einsum("bsnr,rv->bsnv", *low_rank, preferred_element_type=jnp.float32)
        return logits_BSnV

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

    def output_low_rank(self, hidden_BSnD: Array) -> tuple[Array, Array] | None:
        """(B, S, n, r) and (r, V), whose product is added to the logits: the adapter of the output matrix, if any."""
        if self.output is None or self.output.adapter is None:
            return None
        adapter = self.output.adapter
        return adapter.down(hidden_BSnD), adapter.lora_b[...].astype(hidden_BSnD.dtype)

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
        """Normed hidden states of the heads (B, S, n, D): the input of the output matrix.

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

        # One head after another, not batched: n times less memory for activations in flight.
        body = jax.checkpoint(head) if self.remat else head
        _, hidden_nBSD = jax.lax.scan(body, None, stacked, unroll=self.unroll)
        return jnp.moveaxis(hidden_nBSD, 0, 2)

    def _context(
        self, tokens_BS: Array, segment_ids_BS: Array | None, attention_mask_BS: Array | None = None
    ) -> tuple[Any, Array | None]:
        """Rotary angles and attention mask, which all blocks share."""
        if segment_ids_BS is None:
            positions_BS = jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None]
            mask_B1SS = None
            if attention_mask_BS is not None:
                mask_B1SS = document_mask(jnp.ones_like(tokens_BS)) & attention_mask_BS[:, None, None]
        else:
            positions_BS = document_positions(segment_ids_BS)
            mask_B1SS = document_mask(segment_ids_BS)
        return rotary_angles(positions_BS, self.config), mask_B1SS

    def _run(self, blocks: Block | None, x_BSD: Array, context: tuple[Any, Array | None]) -> Array:
        """Applies stacked blocks one after another."""
        if blocks is None:
            return x_BSD
        graphdef, stacked = nnx.split(blocks)

        def apply(x: Array, block: Any) -> tuple[Array, None]:
            return shard_batch(nnx.merge(graphdef, block)(x, *context)), None

        body = jax.checkpoint(apply) if self.remat else apply
        return jax.lax.scan(body, x_BSD, stacked, unroll=self.unroll)[0]


def _stack(config: ModelConfig, count: int, rngs: nnx.Rngs, dtypes: dict[str, Any]) -> Block | None:
    if not count:
        return None

    @nnx.split_rngs(splits=count)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: None})
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs=rngs, **dtypes)

    return make(rngs)
