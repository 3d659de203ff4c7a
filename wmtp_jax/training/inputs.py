"""What a run reads: the model, its tokenizer, the critic or reference, the examples. Everything is checked here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wmtp_jax.config import Settings
from wmtp_jax.console import err
from wmtp_jax.data.sample import draw_samples
from wmtp_jax.data.sample_report import Method, SampleReport
from wmtp_jax.data.scores import ScoreFile
from wmtp_jax.data.store import TOKENIZER, Split, read_manifest
from wmtp_jax.data.tokenize import load_tokenizer, tokenizer_fingerprint
from wmtp_jax.errors import UserError
from wmtp_jax.load import ModelSource, find_model, model_fingerprint, split_step
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.training.objective import chosen_scheme, make_objective
from wmtp_jax.training.scoring import check_scorer
from wmtp_jax.training.stages import Stage


def find_architecture(stage: Stage, settings: Settings) -> tuple[ModelConfig, ModelSource | None]:
    """The architecture that is trained, and where weights come from (None: random ones).

    A value head is added where the stage trains one and the model brings none. A critic on the backbone of a
    next-token model reads its last block: the only head joins the trunk.

    Raises:
      UserError: the model is absent and no architecture is given, the two differ, or it does not fit the stage.
    """
    expected, source = settings.model.architecture, None
    if settings.model.path is None:
        assert expected is not None  # config.py checks it
        config = expected
    else:
        source = find_model(settings.model.path)
        config = source.config
        if expected is not None and dataclasses.replace(expected, value_head=config.value_head) != config:
            raise UserError(
                f"model.architecture is not that of {settings.model.path}:\n  settings: {expected}\n  "
                f"found:    {config}\nMend or remove model.architecture."
            )
    if stage.trains == "tokens" and not config.n_future_tokens:
        raise UserError("the model gives values only (n_future_tokens is 0); this stage needs one that predicts tokens")
    if stage.next_token_only and config.n_future_tokens != 1:
        raise UserError(
            f"stage {stage.name} trains a next-token model, but this one has {config.n_future_tokens} heads; "
            "give a model with n_future_tokens 1 (an imported LLaMA)"
        )
    if _trains_values(stage, settings) and config.value_head is None:
        critic = scorer_path(stage, settings)[0]
        head: str | None = settings.critic.value_head
        if critic is not None and split_step(critic)[0].exists():
            head = find_model(critic).config.value_head  # the critic brings its own along
        config = dataclasses.replace(config, value_head=head)
    if stage.trains == "values" and config.n_future_tokens == 1:
        config = dataclasses.replace(config, n_future_tokens=0)
    _check_trained(stage, settings, config)
    return config, source


def _check_trained(stage: Stage, settings: Settings, config: ModelConfig) -> None:
    if settings.training.train == "head" and stage.trains != "values":
        raise UserError(
            f"training.train is head, the value head alone, but stage {stage.name} trains tokens; use lora or full"
        )
    if settings.training.train == "lora":
        needs = make_objective(stage, settings, config.n_future_tokens, total_steps=1, n_documents=1)
        try:
            needs.trained_form(store.build(config)[1])
        except ValueError as error:
            raise UserError(str(error)) from error


def _trains_values(stage: Stage, settings: Settings) -> bool:
    return stage.trains == "values" or (stage.scorer == "critic" and settings.weighting.critic == "joint")


def scorer_path(stage: Stage, settings: Settings) -> tuple[Path | None, str]:
    """Where the critic or the reference of a stage is (None: it needs none), and the setting that says so.

    Raises:
      UserError: the stage needs one and the setting is not there; or settings contradict the stage.
    """
    weighting = settings.weighting
    if stage.schemes and chosen_scheme(stage, weighting) not in stage.schemes:
        raise UserError(f"weighting.scheme: stage {stage.name} has {', '.join(stage.schemes)}, not {weighting.scheme}")
    if not stage.schemes and weighting.scheme is not None:
        raise UserError(f"weighting.scheme: stage {stage.name} weighs no tokens; leave it out")
    setting = "experiment.critic_checkpoint" if stage.scorer == "critic" else "experiment.reference_model"
    uniform = not stage.schemes or chosen_scheme(stage, weighting) == "uniform"
    if stage.scorer is None or (uniform and not _trains_values(stage, settings)):
        if weighting.scores is not None:
            raise UserError(f"weighting.scores: stage {stage.name} with these settings reads no scores; leave it out")
        return None, setting
    if stage.trains == "tokens" and _trains_values(stage, settings) and settings.critic.loss_type == "pairwise":
        raise UserError(
            f"critic.loss_type is pairwise: stage {stage.name} reads single solutions, no pairs; the critic goes on "
            "learning by mse, huber or lambda_return, or not at all (weighting.critic=frozen)"
        )
    if weighting.scores is not None and _trains_values(stage, settings):
        raise UserError(
            "weighting.scores are those of a frozen critic, but weighting.critic is joint: the critic goes on learning "
            "and scores every batch itself; set weighting.critic=frozen or leave weighting.scores out"
        )
    experiment = settings.experiment
    path = experiment.critic_checkpoint if stage.scorer == "critic" else experiment.reference_model
    if path is None:
        what = "the critic: a run of `--stage critic`" if stage.scorer == "critic" else "the reference model"
        raise UserError(f"{setting} is missing: stage {stage.name} needs {what}, or a model directory")
    return path, setting


def find_scorer(
    stage: Stage, settings: Settings, config: ModelConfig, policy: ModelSource | None, tokenizer: Any
) -> ModelSource | None:
    """The critic or the reference, checked against the model that is trained; None where the stage needs none.

    Raises:
      UserError: it is absent, cannot score, or has another vocabulary, tokenizer or (joint) architecture.
    """
    path, setting = scorer_path(stage, settings)
    if path is None:
        return None
    try:
        source = find_model(path)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error
    assert stage.scorer is not None
    check_scorer(source, stage.scorer, setting)
    if source.config.vocab_size != config.vocab_size:
        raise UserError(
            f"{setting}: {path} has a vocabulary of {source.config.vocab_size:,}, the trained model of "
            f"{config.vocab_size:,}; both must read the same tokens"
        )
    theirs = tokenizer if source.tokenizer is None else load_tokenizer(source.tokenizer)
    if tokenizer_fingerprint(theirs) != tokenizer_fingerprint(tokenizer):
        raise UserError(
            f"{setting}: {path} has another tokenizer than the trained model; both must read the same tokens"
        )
    if _trains_values(stage, settings):
        bare = [dataclasses.replace(c, value_head=None) for c in (source.config, config) if c.n_future_tokens]
        if len(bare) < 2 or bare[0] != bare[1] or source.config.value_head != config.value_head:
            raise UserError(
                f"{setting}: the critic's architecture is not the policy's, so its value head does not fit:\n"
                f"  critic: {source.config}\n  policy: {config}\n"
                "Train a critic on this policy, or set weighting.critic=frozen to use it as a model of its own"
            )
        if (trained := source.description.source.get("trained")) in ("full", "lora"):
            raise UserError(
                f"{setting}: {path} was trained with training.train={trained}: its value head reads its own trunk, "
                "not the policy's. Set weighting.critic=frozen, or train a critic with training.train=head"
            )
        backbone = source.description.source.get("backbone")
        if policy is None or (backbone and backbone != model_fingerprint(policy)):
            err.print(
                f"[yellow]{setting}: {path} was trained on other weights than those of the policy[/] (model.path); its "
                "value head may say little on this trunk until it has learned it",
                highlight=False,
                soft_wrap=True,
            )
    return source


def find_tokenizer(settings: Settings, source: ModelSource | None) -> Path:
    """Folder of the tokenizer: the one named, the model's own, or the data set's."""
    if settings.model.tokenizer is not None:
        return settings.model.tokenizer
    if source is not None and source.tokenizer is not None:
        return source.tokenizer
    if source is not None and source.foreign and (source.directory / "tokenizer.model").is_file():
        raise UserError(
            f"{source.directory}: its tokenizer.model needs a config; make a model directory with "
            "`python -m conversion import` first, or name a tokenizer as model.tokenizer"
        )
    if read_manifest(settings.dataset.path)["tokenizer"] is None:
        raise UserError(
            f"{settings.dataset.path}: holds texts alone, no tokens; prepare it again with --tokenizer (the model's)"
        )
    return settings.dataset.path / TOKENIZER


def check_tokens(directory: Path, tokenizer: Any, folder: Path, vocab_size: int, splits: Iterable[str]) -> str:
    """Checks that the tokens of a data set are those that the model reads.

    Args:
      directory: of the data set.
      tokenizer: of the model.
      folder: where that tokenizer is, for messages.
      vocab_size: of the model.
      splits: what is read.

    Returns:
      The fingerprint of the tokenizer.

    Raises:
      UserError: another tokenizer made them, or none, or there is a token that the model does not have.
    """
    manifest, fingerprint = read_manifest(directory), tokenizer_fingerprint(tokenizer)
    if manifest["tokenizer"] != fingerprint:
        if folder.resolve() == (directory / TOKENIZER).resolve():
            raise UserError(f"{folder}: is not the tokenizer that made these tokens; prepare the data set again")
        theirs = f"was tokenised by another tokenizer ({directory / TOKENIZER})"
        raise UserError(
            f"{directory} {theirs if manifest['tokenizer'] else 'holds texts alone'}, but the model reads the tokens "
            f"of {folder}; prepare it again for this model: `python -m wmtp_jax.prepare --dataset "
            f"{manifest['dataset']} ... --tokenizer {folder} --output <another folder>`"
        )
    largest = max(manifest["splits"][name]["largest_token"] for name in splits)
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer gives token {largest}, but the model's vocabulary is {vocab_size} (ids below it); "
            "use the model's own tokenizer (model.tokenizer) or set model.architecture.vocab_size to at least "
            f"{len(tokenizer)}"
        )
    return fingerprint


def sampling_method(stage: Stage, settings: Settings, split: str) -> Method:
    """Which solutions are drawn: ``correct``, ``balanced`` or ``pairs``.

    Heads are validated on correct solutions whatever they are trained on, so that all runs compare.
    """
    paired = stage.trains == "values" and settings.critic.loss_type == "pairwise"
    if split == "valid":
        return "correct" if stage.trains == "tokens" else "pairs" if paired else "balanced"
    sampling = settings.data_sampling
    method: Method = sampling.method or ("pairs" if paired else stage.samples)
    if stage.trains == "values" and method == "correct":
        raise UserError(
            "data_sampling.method is correct: a critic needs incorrect solutions too; use balanced or pairs"
        )
    if paired and method != "pairs":
        raise UserError("critic.loss_type is pairwise: data_sampling.method must be pairs (or null)")
    if sampling.length_balanced and method != "pairs":
        raise UserError(
            f"data_sampling.length_balanced is about pairs, but stage {stage.name} draws by the method {method} here; "
            "set data_sampling.method=pairs, or leave data_sampling.length_balanced out"
        )
    return method


def draw_examples(stage: Stage, settings: Settings, split: Split, setting: str) -> tuple[np.ndarray, SampleReport]:
    """Numbers of the examples of a split that a run uses: (N,), or (N, 2) for pairs that stay side by side; and what
    they are.

    Difficulties, lengths and ratios of the settings are those of training: all runs are validated on the same.

    Raises:
      UserError: there are fewer than ``setting`` asks for, or the method does not fit the stage.
    """
    sampling, method = settings.data_sampling, sampling_method(stage, settings, split.name)
    if split.name == "train":
        by_difficulty = sampling.difficulty or sampling.curriculum  # of both, the bins are the same
        chosen, report = draw_samples(
            split,
            method,
            sampling.n_samples,
            sampling.seed,
            setting,
            max_length=settings.dataset.max_length,
            correct_ratio=sampling.correct_ratio,
            max_pairs_per_problem=sampling.max_pairs_per_problem,
            length_bin_tokens=sampling.length_bin_tokens if sampling.length_balanced else None,
            bins=by_difficulty.bins if by_difficulty else None,
            weights=sampling.difficulty.weights if sampling.difficulty else None,
        )
    else:
        n_samples, max_length = sampling.n_validation_samples, settings.dataset.max_length
        chosen, report = draw_samples(split, method, n_samples, sampling.seed, setting, max_length=max_length)
    # Only the pairwise loss needs the sides of a pair below each other.
    side_by_side = stage.trains == "values" and settings.critic.loss_type == "pairwise"
    return (chosen if side_by_side else np.sort(chosen.reshape(-1))), report


def open_scores(
    stage: Stage, settings: Settings, tokenizer_fingerprint: str, data_fingerprint: str, scorer_fingerprint: str | None
) -> ScoreFile | None:
    """The file of scores that the settings name, checked against model and data; None without one."""
    if settings.weighting.scores is None or scorer_fingerprint is None or stage.scorer is None:
        return None
    file = ScoreFile(settings.weighting.scores)
    file.check(
        kind=stage.scorer,
        data=data_fingerprint,
        tokenizer=tokenizer_fingerprint,
        model=scorer_fingerprint,
    )
    return file
