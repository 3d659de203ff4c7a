"""What one update minimises: weighted multi-token cross-entropy, the critic's loss, or both.

Shapes in names: B rows, S positions, n heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from wmtp_jax.config import CriticSettings, Settings, WeightingSettings
from wmtp_jax.data.pack import Rows
from wmtp_jax.losses.cross_entropy import token_cross_entropy
from wmtp_jax.losses.mtp import mtp_targets
from wmtp_jax.losses.value import (
    document_mean_sums,
    huber_errors,
    lambda_returns,
    lambda_schedule,
    pairwise_sums,
    squared_errors,
)
from wmtp_jax.models.lora import ADAPTER, LoRAConfig, attach, init_adapter
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.training.stages import Stage
from wmtp_jax.weighting import rho1, td, uniform
from wmtp_jax.weighting.controls import CONTROLS
from wmtp_jax.weighting.tokens import Scheme


@dataclass(frozen=True)
class ValueLoss:
    """The critic's loss.

    Attributes:
      kind: ``mse``, ``huber``, ``lambda_return`` or ``pairwise``.
      delta: of Huber's loss.
      gamma, gae_lambda: of lambda returns; lambda by update.
      include_prompt: prompt tokens count too.
      n_documents: documents in the fullest row.
      dropout: in the value head's hidden layers.
    """

    kind: str
    delta: float
    gamma: float
    gae_lambda: optax.Schedule
    include_prompt: bool
    n_documents: int
    dropout: float

    def sums(self, values_BS: Array, rows: Rows, gae_lambda: Array | float) -> tuple[Array, Array]:
        """Numerator and denominator over the documents (or pairs) of ``rows``; arrays (B, S)."""
        segment_ids_BS = rows.segment_ids
        mask_BS = (segment_ids_BS > 0) if self.include_prompt else rows.loss_mask.astype(bool)
        if self.kind == "pairwise":
            return pairwise_sums(values_BS, mask_BS, segment_ids_BS, self.n_documents)
        targets_BS = rows.outcomes
        if self.kind == "lambda_return":
            targets_BS = lambda_returns(
                values_BS, rows.outcomes, mask_BS, segment_ids_BS, gae_lambda=gae_lambda, gamma=self.gamma
            )
        if self.kind == "mse":
            errors_BS = squared_errors(values_BS, targets_BS)
        else:
            errors_BS = huber_errors(values_BS, targets_BS, self.delta)
        return document_mean_sums(errors_BS, mask_BS, segment_ids_BS, self.n_documents)

    def count(self, rows: Rows) -> Array:
        """The denominator alone: it is known before any value is."""
        return self.sums(jnp.zeros(rows.tokens.shape), rows, 1.0)[1]


@dataclass(frozen=True)
class Objective:
    """What one update minimises.

    Attributes:
      n_heads: prediction heads that are trained; 0: none.
      scheme: the weighting; None where no head is trained.
      reads_model: the weights depend on what the trained model says of the batch.
      normalize: ``valid`` or ``weights``: what a head's weighted sum is divided by.
      value_loss: None where no value head is trained.
      value_coef: its weight.
      needs_scores: a frozen model's scores stand beside the tokens.
      needs_outcomes: the rows say which documents are correct.
      draws: the weights are drawn at random.
      part: ``full``: all parameters that the losses depend on are trained; ``head``: the value head alone;
        ``lora``: adapters, and the value head where there is a value loss.
      lora: the adapters, where they are trained.
      seed: of everything random in an update.
    """

    n_heads: int
    scheme: Scheme | None
    reads_model: bool
    normalize: str
    value_loss: ValueLoss | None
    value_coef: float
    needs_scores: bool
    needs_outcomes: bool
    draws: bool
    seed: int
    part: str = "full"
    lora: LoRAConfig | None = None

    @property
    def frozen(self) -> bool:
        """Whether the model's weights have no gradient, but for a value head."""
        return self.part != "full"

    @property
    def drops(self) -> bool:
        """Whether something is left out at random inside the adapters while they are trained."""
        return self.lora is not None and self.lora.dropout > 0

    def weighs_first(self, n_micro: int) -> bool:
        """Whether a forward pass of its own finds the weights, before the one that has gradients.

        They are those of the whole batch, so ``n_micro`` micro-batches must all have been seen; and dropout inside
        the adapters must not touch them.
        """
        return self.reads_model and (n_micro > 1 or self.drops)

    def model(self, graphdef: nnx.GraphDef[MTPTransformer], params: Any, key: Array | None = None) -> MTPTransformer:
        """The model with these parameters, adapters on its projections; their dropout by ``key``, None: none."""
        if self.lora is None:
            return nnx.merge(graphdef, params)
        model = nnx.merge(graphdef, {name: part for name, part in params.items() if name != ADAPTER})
        attach(model, params[ADAPTER], self.lora, key)
        return model

    def trained_form(self, shapes: Any) -> Any:
        """The shapes of a model's parameters while they are trained.

        With ``train: lora`` an adapter stands beside them.

        Raises:
          ValueError: a target of the adapter matches nothing.
        """
        if self.lora is None:
            return shapes
        return {**shapes, ADAPTER: jax.eval_shape(partial(self.fresh_adapter, shapes))}

    def fresh_adapter(self, params: Any) -> Any:
        """An adapter that changes nothing yet, on what the losses depend on. Raises ValueError as `trained_form`."""
        assert self.lora is not None
        adapted = params if self.n_heads else {name: part for name, part in params.items() if name == "trunk"}
        return init_adapter(adapted, self.lora, self.seed)

    def trains(self, name: str) -> bool:
        """Whether a parameter is updated, by its dotted name."""
        if name.startswith("value_head."):
            return self.value_loss is not None
        if self.part != "full":
            return name.startswith(f"{ADAPTER}.")
        if name.startswith(("heads.", "output.")):
            return self.n_heads > 0
        return True

    def forward(self, model: MTPTransformer, rows: Rows, key: Array | None = None) -> tuple[Any, Any, Any]:
        """Token losses (B, S, n), values (B, S), and values with dropout by ``key``; None where not needed."""
        trunk_BSD = model.trunk_hidden(rows.tokens, rows.segment_ids)
        ce_BSn = values_BS = noisy_BS = None
        if self.n_heads:
            targets_BSn, _ = self.targets(rows)
            hidden_nBSD = model.head_hidden(rows.tokens, rows.segment_ids, self.n_heads, trunk_BSD)
            ce_BSn = token_cross_entropy(
                hidden_nBSD,
                model.output_kernel,
                targets_BSn,
                model.output_low_rank(hidden_nBSD),
                frozen=self.frozen,
            )
        if self.value_loss:
            values_BS = noisy_BS = model.trunk_values(trunk_BSD)
            if self.value_loss.dropout and key is not None:
                noisy_BS = model.trunk_values(trunk_BSD, self.value_loss.dropout, key)
        return ce_BSn, values_BS, noisy_BS

    def targets(self, rows: Rows) -> tuple[Array, Array]:
        """Targets and their validity, (B, S, n)."""
        return mtp_targets(rows.tokens, rows.segment_ids, rows.loss_mask, self.n_heads)


def make_objective(stage: Stage, settings: Settings, n_heads: int, *, total_steps: int, n_documents: int) -> Objective:
    """The objective of a stage under its settings.

    Args:
      stage: which stage.
      settings: of the run; `wmtp_jax.training.run` has checked that they fit the stage.
      n_heads: prediction heads of the model.
      total_steps: what schedules span.
      n_documents: documents in the fullest row.
    """
    weighting, part = settings.weighting, trained_part(stage, settings.training.train)
    joint = stage.scorer == "critic" and weighting.critic == "joint"
    scheme_name = chosen_scheme(stage, weighting) if stage.schemes else None
    weighted = scheme_name not in (None, "uniform")
    value_loss = None
    if stage.trains == "values" or joint:
        value_loss = _value_loss(settings.critic, total_steps, n_documents)
    return Objective(
        n_heads=n_heads if stage.trains == "tokens" else 0,
        scheme=_scheme(stage, scheme_name, weighting) if scheme_name else None,
        reads_model=weighted and (joint or stage.scorer == "reference"),
        normalize=weighting.normalize or ("weights" if stage.scorer == "reference" else "valid"),
        value_loss=value_loss,
        value_coef=weighting.value_coef if joint else 1.0,
        needs_scores=weighted and not joint,
        needs_outcomes=value_loss is not None or (weighted and stage.scorer == "critic"),
        draws=scheme_name in CONTROLS,
        part=part,
        lora=settings.lora.record() if part == "lora" else None,
        seed=settings.runtime.seed,
    )


def trained_part(stage: Stage, train: str | None) -> str:
    """What of the model is trained: ``training.train``, or the stage's own."""
    return train or ("head" if stage.trains == "values" else "full")


def chosen_scheme(stage: Stage, weighting: WeightingSettings) -> str:
    """The weighting that the settings choose, or the stage's own."""
    return weighting.scheme or stage.schemes[0]


def _scheme(stage: Stage, name: str, weighting: WeightingSettings) -> Scheme:
    if name == "uniform":
        return uniform.weigh
    # A control takes the place of the stage's own weights, which it is matched to.
    control = name if name in CONTROLS else None
    schemes: dict[str, Callable[..., Scheme]] = {"td": _td, "rho1": _rho1}
    return schemes[stage.schemes[0]](weighting, control)


def _td(weighting: WeightingSettings, control: str | None) -> Scheme:
    return partial(
        td.weigh,
        control=control,
        advantage=weighting.advantage,
        terminal=weighting.terminal,
        gamma=weighting.gamma,
        gae_lambda=weighting.gae_lambda,
        whiten=weighting.whiten,
        moving=weighting.whiten_statistics == "moving",
        momentum=weighting.whiten_momentum,
        warmup_steps=weighting.whiten_warmup_steps,
        beta=weighting.beta,
        clip_min=weighting.weight_clip_min,
        clip_max=weighting.weight_clip_max,
    )


def _rho1(weighting: WeightingSettings, control: str | None) -> Scheme:
    return partial(
        rho1.weigh,
        control=control,
        mode=weighting.mode,
        selection=weighting.selection,
        k_percent=weighting.k_percent,
        temperature=weighting.temperature,
    )


def _value_loss(critic: CriticSettings, total_steps: int, n_documents: int) -> ValueLoss:
    return ValueLoss(
        kind=critic.loss_type,
        delta=critic.huber_delta,
        gamma=critic.gamma,
        gae_lambda=lambda_schedule(
            critic.lambda_schedule, critic.lambda_start, critic.lambda_end, critic.lambda_hold, total_steps
        ),
        include_prompt=critic.include_prompt,
        n_documents=n_documents,
        dropout=critic.dropout,
    )
