"""Settings: presets, overrides, errors that name the setting, the generated reference."""

import json
from pathlib import Path

import pytest

from wmtp_jax import config_reference
from wmtp_jax.config import Environment
from wmtp_jax.config_sampling import DataSamplingSettings
from wmtp_jax.errors import UserError
from wmtp_jax.settings_file import as_yaml, flatten, load_settings, production_preset

ROOT = Path(__file__).parent.parent
MICRO = ROOT / "configs/baseline/micro.yaml"
PRESETS = sorted(ROOT.glob("configs/*/*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.parent.name + "/" + path.name)
def test_presets_load_and_survive_a_round_trip(path: Path, tmp_path: Path):
    settings = load_settings(path)
    (tmp_path / "again.yaml").write_text(as_yaml(settings))
    assert load_settings(tmp_path / "again.yaml") == settings
    assert "${" not in path.read_text()


def test_production_baseline_is_as_published():
    settings = load_settings(ROOT / production_preset("baseline"))
    training = settings.training
    assert settings.experiment.name == "baseline-mtp"
    assert (training.batch_size, training.gradient_accumulation_steps) == (4, 4)
    assert (training.n_epochs, training.learning_rate) == (2.5, 1e-5)
    assert (training.adam_b1, training.adam_b2, training.weight_decay, training.max_grad_norm) == (
        0.9,
        0.95,
        0.01,
        1.0,
    )
    assert settings.dataset.max_length == 2048
    checkpoint = settings.checkpoint
    assert (checkpoint.save_checkpoint_every, checkpoint.save_best, checkpoint.save_total_limit) == (
        1.0,
        True,
        3,
    )
    mesh = settings.runtime.mesh
    assert training.batch_size * training.gradient_accumulation_steps * mesh.data * mesh.fsdp == 64


def test_overrides_last_wins():
    settings = load_settings(
        MICRO,
        [
            "training.max_steps=5",
            "training.max_steps=7",
            "checkpoint.save_dir=/x y",
            "training.learning_rate=2e-5",
        ],
    )
    assert settings.training.max_steps == 7
    assert settings.checkpoint.save_dir == Path("/x y")
    assert settings.training.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "did you mean training.learning_rate?"),
        ("max_steps=3", "did you mean training.max_steps?"),
        ("training.max_length=3", "did you mean dataset.max_length?"),
        ("model.architecture.dimm=3", "did you mean model.architecture.dim?"),
        ("critic.train=lora", "unknown setting critic.train; did you mean training.train?"),
        ("lora.targets=['w[']", "'w\\[' is no regular expression"),
        ("lora.dropout=1.0", "less than 1"),
        ("zzz=1", "the settings has: experiment, model"),
        ("training.max_steps=abc", "training.max_steps: .*integer, found 'abc'"),
        ("training.max_steps=true", "valid integer"),
        ("training.batch_size=0", "greater than or equal to 1, found 0"),
        ("training.learning_rate=.nan", "finite"),
        ("training.warmup_ratio=1.5", "less than or equal to 1"),
        ("model.architecture.dim=130", "dim 130 is not a multiple of n_heads"),
        ("model.architecture=null", "give model.path .* or model.architecture"),
        ("experiment.name=a/b", "experiment.name"),
        ("training=3", "training: .*found 3"),
        ("training.batch_size.x=3", "'batch_size' is a value"),
        ("nonsense", "expected a.b=value"),
        ("dataset.path={[a]: 1}", "'a'. cannot be a key"),
        ("dataset.path=" + "[" * 3000, "not valid YAML"),
        ("model.architecture.norm_eps=.inf", "finite number above 0"),
        ("model.architecture.dim=1000000000000", "below 2"),
        ("model.architecture.rope_scaling={rope_type: llama3, factr: 8.0}", "did you mean .*rope_scaling.factor"),
        ("model.architecture.rope_scaling={rope_type: yarn, factor: 8.0}", "must be llama3 or linear"),
        ("runtime.seed=18446744073709551615", "less than 4294967296"),
        ("training.n_epochs=1e308", "less than or equal to"),
        ('checkpoint.save_dir="a\\0b"', "zero byte"),
        ("experiment.name=123", "put it in quotes"),
        ("trainng.max_steps=20", "^--override trainng.max_steps: unknown setting trainng"),
        ("runtime.mesh.data=0", "^--override runtime.mesh.data: .*sizes are 1 or more"),
        ("training.max_steps=[1", "not valid YAML"),
        ("data_sampling.difficulty={}", "data_sampling.difficulty.weights is missing"),
        (
            "data_sampling.difficulty={weights: {low: 1, high: 1}}",
            "has weights for high, low; each bin needs one: high, low, medium",
        ),
        ("data_sampling.difficulty={weights: {low: 0, medium: 0, high: 0}}", "no weight above 0"),
        ("data_sampling.difficulty={weights: {low: -1, medium: 0, high: 0}}", "greater than or equal to 0"),
        ("data_sampling.difficulty={bins: {a: [1, 3], b: [3, 4]}, weights: {a: 1, b: 1}}", "difficulty.bins.*overlap"),
        ("data_sampling.difficulty={bins: {a: [3, 1]}, weights: {a: 1}}", "difficulty.bins.*overlap"),
        ("data_sampling.difficulty={bins: {}, weights: {}}", "difficulty.bins.*at least 1"),
        ("data_sampling.difficulty={weight: {low: 1}}", "did you mean data_sampling.difficulty.weights"),
        ("data_sampling.curriculum={bins: {low: [1, 5], medium: [4, 7], high: [8, 9]}}", "curriculum.bins.*overlap"),
        ("data_sampling.length_bin_tokens=0", "greater than or equal to 1"),
        ("tracking.uri=http://user:secret@host", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_bad_override(override: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        load_settings(MICRO, [override])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1, column 6: not valid YAML"),
        ("experiment:\n  name: a\n  name: b\n", "line 3, column 3: .* 'name' stands twice"),
        ("- 1\n- 2\n", "expected settings by part"),
        ("", "expected settings by part"),
        ("experiment: {name: a}\n", "setting training is missing"),
    ],
)
def test_bad_file(text: str, message: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_settings(path)
    assert str(path) in str(error.value)


def test_missing_and_unreadable_file(tmp_path: Path):
    with pytest.raises(UserError, match="no such settings file; presets"):
        load_settings(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="settings file is YAML text"):
        load_settings(tmp_path / "binary.yaml")


def test_every_mistake_is_listed():
    with pytest.raises(UserError) as error:
        load_settings(MICRO, ["training.batch_size=0", "dataset.max_length=2"])
    assert "training.batch_size" in str(error.value)
    assert "dataset.max_length" in str(error.value)


def test_reference_is_up_to_date(monkeypatch):
    assert (ROOT / config_reference.SCHEMA).read_text() == config_reference.schema_text(), "run: make schema"
    monkeypatch.chdir(ROOT)
    readme = config_reference.README.read_text(encoding="utf-8")
    assert config_reference.readme_text(readme) == readme, "run: make schema"
    assert json.loads(config_reference.schema_text())["additionalProperties"] is False


def test_settings_cannot_change_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        DataSamplingSettings().seed = 1  # type: ignore[misc]


DIFFICULTY = "data_sampling.difficulty={bins: {a: [1, 5], b: [6, 11]}, weights: {a: 0.7, b: 0.3}}"


def test_sampling_settings_survive_a_round_trip(tmp_path: Path):
    changes = DIFFICULTY, "data_sampling.difficulty.weights.b=1", "data_sampling.length_balanced=true"
    settings = load_settings(MICRO, changes)
    (tmp_path / "again.yaml").write_text(as_yaml(settings))
    assert load_settings(tmp_path / "again.yaml") == settings
    sampling = settings.data_sampling
    assert sampling.difficulty.bins == {"a": (1, 5), "b": (6, 11)}
    assert sampling.difficulty.weights == {"a": 0.7, "b": 1.0}
    assert (sampling.length_balanced, sampling.length_bin_tokens) == (True, 64)
    assert load_settings(tmp_path / "again.yaml", ["data_sampling.difficulty=null"]).data_sampling.difficulty is None


def test_difficulty_and_curriculum_agree():
    phases = "phases: [{until: 1.0, weights: {a: 1, b: 1}}]"
    same = f"data_sampling.curriculum={{bins: {{b: [6, 11], a: [1, 5]}}, {phases}}}"
    assert load_settings(MICRO, [DIFFICULTY, same]).data_sampling.curriculum is not None
    other = f"data_sampling.curriculum={{bins: {{a: [1, 4], b: [5, 11]}}, {phases}}}"
    with pytest.raises(UserError, match=r"must be the same: a 1-5, b 6-11 and a 1-4, b 5-11"):
        load_settings(MICRO, [DIFFICULTY, other])
    with pytest.raises(UserError, match=r"difficulty.weights.b is 0, .* a phase of data_sampling.curriculum reads"):
        load_settings(MICRO, [DIFFICULTY, same, "data_sampling.difficulty.weights.b=0"])
    with pytest.raises(UserError, match=r"shares of data_sampling.n_samples, which is null"):
        load_settings(MICRO, [DIFFICULTY, "data_sampling.n_samples=null"])


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": [1]}


def test_environment_file_keeps_secrets_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    (tmp_path / ".env").write_text("MLFLOW_TRACKING_PASSWORD=hunter2\nSOMETHING_ELSE=1\n")
    environment = Environment()
    assert environment.mlflow_tracking_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(environment)


def test_choices_are_those_of_what_they_choose():
    """The types of settings list them again, for the schema."""
    from typing import get_args

    from wmtp_jax.config import CriticSettings, ModelSettings, TrainingSettings
    from wmtp_jax.models.attention import KERNELS
    from wmtp_jax.models.config import VALUE_HEADS
    from wmtp_jax.models.mtp import REMAT

    assert get_args(TrainingSettings.model_fields["remat"].annotation) == tuple(REMAT)
    assert get_args(ModelSettings.model_fields["attention"].annotation) == ("auto", *KERNELS)
    assert get_args(CriticSettings.model_fields["value_head"].annotation) == VALUE_HEADS
