"""Controls that a claim about a weighting needs: weights of the same size in the wrong places.

Shapes in names: B rows, S positions.
"""

import jax
import jax.numpy as jnp
from jax import Array

from wmtp_jax.weighting.tokens import masked_mean

CONTROLS = ("random_matched", "shuffled")


def replaced(
    control: str | None,
    weights_BS: Array,
    mask_BS: Array,
    segment_ids_BS: Array,
    noise_BS: Array | None,
    clip_min: float,
    clip_max: float,
) -> Array:
    """The weights of a scheme, or what a control puts in their place.

    ``noise_BS`` is uniform in [0, 1): it comes with the tokens, so that dividing a batch otherwise draws the same.

    Raises:
      ValueError: ``control`` is unknown.
    """
    if control is None:
        return weights_BS
    assert noise_BS is not None
    if control == "random_matched":
        return random_matched(weights_BS, mask_BS, noise_BS, clip_min, clip_max)
    if control == "shuffled":
        return shuffled(weights_BS, mask_BS, segment_ids_BS, noise_BS)
    raise ValueError(f"control is {control!r}; it must be one of {', '.join(CONTROLS)}")


def random_matched(weights_BS: Array, mask_BS: Array, noise_BS: Array, clip_min: float, clip_max: float) -> Array:
    """Log-normal weights with the mean and standard deviation of ``weights`` over the mask, clipped likewise.

    Args:
      weights_BS: the scheme's own weights.
      mask_BS: bool, where weights count; 0 elsewhere.
      noise_BS: uniform in [0, 1).
      clip_min, clip_max: bounds of a weight.
    """
    mean = masked_mean(weights_BS, mask_BS)
    std = jnp.sqrt(masked_mean(jnp.square(weights_BS - mean), mask_BS))
    mean = jnp.maximum(mean, 1e-30)
    variance = jnp.log1p(jnp.square(std / mean))  # of the logarithm
    tiny = jnp.finfo(jnp.float32).tiny
    normal_BS = jax.scipy.special.ndtri(jnp.maximum(noise_BS, tiny))
    drawn_BS = jnp.exp(jnp.log(mean) - variance / 2 + jnp.sqrt(variance) * normal_BS)
    return jnp.where(mask_BS, jnp.clip(drawn_BS, clip_min, clip_max), 0.0)


def shuffled(weights_BS: Array, mask_BS: Array, segment_ids_BS: Array, noise_BS: Array) -> Array:
    """The same weights in another order among the masked tokens of each document; ``noise_BS`` decides the order."""
    group_BS = jnp.where(mask_BS, segment_ids_BS, jnp.iinfo(jnp.int32).max)
    place_BS = jnp.broadcast_to(jnp.arange(weights_BS.shape[1]), weights_BS.shape)
    # Both orders list document after document; inside one they differ by chance.
    to_BS = jnp.lexsort((place_BS, group_BS), axis=1)
    from_BS = jnp.lexsort((noise_BS, group_BS), axis=1)
    rows_B1 = jnp.arange(weights_BS.shape[0])[:, None]
    moved_BS = jnp.zeros_like(weights_BS).at[rows_B1, to_BS].set(jnp.take_along_axis(weights_BS, from_BS, axis=1))
    return jnp.where(mask_BS, moved_BS, 0.0)
