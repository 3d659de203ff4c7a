"""All stages from end to end on tiny data: the chain of runs, frozen scores, exact resume, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from metric_lines import untimed_metrics

import wmtp_jax
from wmtp_jax import report, score
from wmtp_jax.data.batches import batch_numbers
from wmtp_jax.data.scores import ScoreFile
from wmtp_jax.data.store import open_split
from wmtp_jax.data.tokenize import train_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.load import find_model
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.settings_file import load_settings
from wmtp_jax.stored import stored_arrays
from wmtp_jax.training.metrics_file import read_metrics
from wmtp_jax.training.run import build_run
from wmtp_jax.training.stages import STAGES

ROOT = Path(__file__).parent.parent
SHORT = ("training.max_steps=4",)


@pytest.fixture(scope="module")
def chain(train_command, tiny_data, tmp_path_factory) -> dict[str, Path]:
    """A policy, a critic on its trunk, a critic of its own, a reference, and scores of the last two."""
    folder = tmp_path_factory.mktemp("chain")
    runs = {name: folder / name for name in ("policy", "critic", "full", "reference")}
    policy = f"model.path={runs['policy']}"
    train_command(runs["policy"], *SHORT)
    train_command(runs["critic"], policy, "training.n_epochs=20", stage="critic")
    train_command(runs["full"], policy, "training.train=full", "critic.value_head=sigmoid", *SHORT, stage="critic")
    train_command(runs["reference"], "model.architecture.n_future_tokens=1", *SHORT, stage="reference")
    for name in ("full", "reference"):
        scores = folder / f"{name}.arrow"
        arguments = ["--model", str(runs[name]), "--data", str(tiny_data), "--output", str(scores), "--json"]
        assert score.main([*arguments, "--max-length", "64"]) == 0
        runs[f"{name} scores"] = scores
    return runs


def leaves(path: Path) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(wmtp_jax.load_model(str(path)), nnx.Param))]


def test_a_critic_of_a_frozen_trunk_changes_its_head_alone(chain):
    lines = read_metrics(chain["critic"])
    train = [line for line in lines if "train/loss" in line]
    assert all(np.isfinite(line["train/value_head_loss"]) for line in train)
    assert {"train/value_norm", "train/loss", "train/grad_norm"} <= train[0].keys()
    validation = [line for line in lines if "val/loss" in line][-1]
    assert {"val/pairwise_accuracy", "val/explained_variance", "val/position_correlation"} <= validation.keys()
    # A head that says 0.5 of every prefix has a squared error of 0.25: this one has learned something.
    assert validation["val/loss"] < 0.25
    policy, critic = (wmtp_jax.load_model(str(chain[name])) for name in ("policy", "critic"))
    assert critic.config.value_head == "mlp"
    for part in ("trunk", "heads", "output", "norm", "tok_embeddings"):
        before, after = (jax.tree.leaves(nnx.state(getattr(model, part), nnx.Param)) for model in (policy, critic))
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), part
    assert not np.array_equal(critic.value_head.kernel[...], 0 * critic.value_head.kernel[...])
    moved = wmtp_jax.load_model(str(chain["full"]))
    assert not np.array_equal(moved.trunk.attention.wq.kernel[...], policy.trunk.attention.wq.kernel[...])
    np.testing.assert_array_equal(moved.heads.attention.wq.kernel[...], policy.heads.attention.wq.kernel[...])


def test_verifiable_resumes_bit_for_bit(chain, train_command, tmp_path):
    """Moving averages and the joint critic are part of the state."""
    settings = (
        f"model.path={chain['policy']}",
        f"experiment.critic_checkpoint={chain['critic']}",
        "weighting.whiten_statistics=moving",
        "weighting.whiten_warmup_steps=2",
        "checkpoint.save_every_steps=3",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train_command(whole, *settings, "training.max_steps=6", stage="verifiable")
    train_command(parts, *settings, "training.max_steps=3", stage="verifiable")
    assert train_command(parts, *settings, "training.max_steps=6", stage="verifiable")["first_step"] == 3
    assert untimed_metrics(whole) == untimed_metrics(parts)
    for one, other in zip(leaves(whole), leaves(parts), strict=True):
        np.testing.assert_array_equal(one, other)
    line = next(line for line in read_metrics(whole) if "train/loss" in line)
    for name in ("weighted_ce_loss", "td_error_mean", "td_error_std", "weight_mean", "weight_entropy"):
        assert np.isfinite(line[f"train/{name}"]), name
    assert 0 <= line["train/weight_clipped_fraction"] <= 1
    assert line["train/loss"] == pytest.approx(
        line["train/weighted_ce_loss"] + 0.5 * line["train/value_head_loss"], rel=1e-5
    )
    assert result["validation"]["val/loss"] == pytest.approx(
        np.mean([result["validation"][f"val/head_{k}_ce_loss"] for k in (1, 2)]), rel=1e-5
    )


@pytest.mark.parametrize(
    ("stage", "scorer", "setting", "more"),
    [
        ("verifiable", "full", "critic_checkpoint", ("weighting.critic=frozen",)),
        ("rho1", "reference", "reference_model", ()),
    ],
)
def test_scores_from_a_file_train_as_the_frozen_model_does(
    chain, train_command, tmp_path, stage: str, scorer: str, setting: str, more: tuple[str, ...]
):
    common = (f"model.path={chain['policy']}", f"experiment.{setting}={chain[scorer]}", *more, *SHORT)
    train_command(tmp_path / "online", *common, stage=stage)
    file = f"weighting.scores={chain[f'{scorer} scores']}"
    train_command(tmp_path / "file", *common, file, stage=stage)
    online, from_file = untimed_metrics(tmp_path / "online"), untimed_metrics(tmp_path / "file")
    assert len(online) == len(from_file) >= 4
    for one, other in zip(online, from_file, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), name
    names = {"train/excess_loss", "train/selected_fraction"} if stage == "rho1" else {"train/td_error_mean"}
    assert names <= online[0].keys()
    if stage == "rho1":
        assert online[0]["train/selected_fraction"] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("scheme", ["random_matched", "shuffled"])
def test_controls(chain, train_command, tmp_path, scheme: str):
    common = (f"model.path={chain['policy']}", f"experiment.reference_model={chain['reference']}", *SHORT)
    train_command(tmp_path / scheme, *common, f"weighting.scheme={scheme}", stage="rho1")
    line, *more = [line for line in read_metrics(tmp_path / scheme) if "train/loss" in line]
    if scheme == "shuffled":  # as many tokens as the scheme itself chooses
        assert line["train/selected_fraction"] == pytest.approx(0.6, abs=0.02)
        losses = [(x["train/weighted_ce_loss"], x["train/unweighted_ce_loss"]) for x in (line, *more)]
        assert max(abs(weighted - plain) for weighted, plain in losses) > 1e-3
    if scheme == "random_matched":
        assert line["train/weight_mean"] == pytest.approx(0.6, rel=0.2)


def test_pairwise_critic_and_curriculum(chain, train_command, tmp_path, capfd):
    policy = f"model.path={chain['policy']}"
    train_command(
        tmp_path / "pairs", policy, "critic.loss_type=pairwise", "training.batch_size=2", *SHORT, stage="critic"
    )
    assert read_metrics(tmp_path / "pairs")[0]["train/loss"] == pytest.approx(np.log(2), rel=0.2)
    phase = "{until: 1.0, weights: {unknown: 1, known: 1}}"
    bins = f"data_sampling.curriculum={{bins: {{unknown: [0, 0], known: [1, 9]}}, phases: [{phase}]}}"
    critic = f"experiment.critic_checkpoint={chain['critic']}"
    bounds = ("weighting.weight_clip_min=1.0", "weighting.weight_clip_max=1.0")
    train_command(tmp_path / "curriculum", policy, critic, bins, *bounds, *SHORT, stage="verifiable")
    assert capfd.readouterr().err.count("every token weight is clipped") == 1
    with pytest.raises(UserError, match=r"no example of .* has a difficulty in any bin"):
        train_command(tmp_path / "none", policy, critic, "data_sampling.curriculum={}", stage="verifiable")


def test_a_critic_with_adapters(chain, train_command, tmp_path):
    """The trunk stays as it is; adapters and the value head are all that is saved; they resume, and the run is read
    together with the policy.
    """
    settings = (
        f"model.path={chain['policy']}",
        "training.train=lora",
        "lora={rank: 2, alpha: 4, dropout: 0.1, targets: [wq, w2]}",
        "critic.head_learning_rate=1e-3",
        "checkpoint.save_every_steps=2",
    )
    train_command(tmp_path / "whole", *settings, *SHORT, stage="critic")
    train_command(tmp_path / "parts", *settings, "training.max_steps=2", stage="critic")
    assert train_command(tmp_path / "parts", *settings, *SHORT, stage="critic")["first_step"] == 2
    assert untimed_metrics(tmp_path / "whole") == untimed_metrics(tmp_path / "parts")
    for one, other in zip(leaves(tmp_path / "whole@latest"), leaves(tmp_path / "parts@latest"), strict=True):
        np.testing.assert_array_equal(one, other)
    policy, critic = wmtp_jax.load_model(str(chain["policy"])), wmtp_jax.load_model(str(tmp_path / "whole@latest"))
    block = policy.trunk.attention, critic.trunk.attention
    assert not np.array_equal(block[0].wq.kernel[...], block[1].wq.kernel[...])
    np.testing.assert_array_equal(block[0].wk.kernel[...], block[1].wk.kernel[...])
    stored = store.open_arrays(tmp_path / "whole/checkpoints/4")
    assert {name.partition(".")[0] for name in stored} == {"value_head"}
    adapter = store.open_arrays(tmp_path / "whole/checkpoints/4", store.ADAPTER_FOLDER)
    assert {name.rpartition(".")[0] for name in adapter} == {"trunk.attention.wq", "trunk.feed_forward.w2"}


def test_a_next_token_model_becomes_a_backbone(chain, train_command, tmp_path):
    """Its last block reads what the others give: the values of the critic hang on all of its blocks."""
    train_command(tmp_path / "run", f"model.path={chain['reference']}", "training.max_steps=1", stage="critic")
    critic, reference = wmtp_jax.load_model(str(tmp_path / "run")), wmtp_jax.load_model(str(chain["reference"]))
    assert (critic.config.n_future_tokens, critic.config.n_layers) == (0, reference.config.n_layers)
    np.testing.assert_array_equal(
        critic.trunk.attention.wq.kernel[...][-1], reference.heads.attention.wq.kernel[...][0]
    )
    arrays = stored_arrays(find_model(tmp_path / "run"))
    for name, kernel in (("wq", critic.trunk.attention.wq), ("wo", critic.trunk.attention.wo)):
        array = arrays[f"trunk.attention.{name}.kernel"]
        assert array.shape == kernel.kernel.shape
        np.testing.assert_array_equal(array.read(None), kernel.kernel[...])
        np.testing.assert_array_equal(array.read(3), kernel.kernel[...][3])
    assert not any(name.startswith(("heads", "output")) for name in arrays)


def test_report(chain, capsys):
    assert report.main([str(chain["policy"]), str(chain["critic"]), "--json"]) == 0
    policy, critic = json.loads(capsys.readouterr().out)["runs"]
    assert (policy["stage"], critic["stage"]) == ("baseline", "critic")
    assert len(policy["head_ce_loss"]) == 2
    assert 0 <= critic["val/pairwise_accuracy"] <= 1
    assert report.main([str(chain["policy"]), str(chain["critic"])]) == 0
    assert "pairs right" in capsys.readouterr().out
    (chain["policy"].parent / "begun").mkdir(exist_ok=True)
    (chain["policy"].parent / "begun/run.json").write_text('{"stage": "rho1"}')
    assert report.main([str(chain["policy"].parent / "begun"), str(chain["policy"])]) == 0
    assert "begun: the run has not saved a validated checkpoint yet" in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(UserError, match="not a run directory"):
        report.main([str(chain["policy"].parent)])


def test_interrupted_scoring_continues(chain, tiny_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(score, "_AT_ONCE", 40)
    written = []
    original = score.write_part

    def stop_at_the_third(path, *content):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, *content)

    output = tmp_path / "deep/scores.arrow"
    arguments = ["--model", str(chain["full"]), "--data", str(tiny_data), "--output", str(output), "--max-length", "64"]
    monkeypatch.setattr(score, "write_part", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        score.main(arguments)
    assert not output.exists()
    assert "the same command continues" in capfd.readouterr().err
    monkeypatch.setattr(score, "write_part", original)
    assert score.main(arguments) == 0
    assert "2 of 5 parts are there" in capfd.readouterr().err
    assert [path.name for path in output.parent.iterdir()] == ["scores.arrow"]
    one, other = (pa.ipc.open_file(str(path)).read_all() for path in (output, chain["full scores"]))
    assert one["row"].to_pylist() == other["row"].to_pylist()
    np.testing.assert_allclose(
        one["scores"].combine_chunks().values, other["scores"].combine_chunks().values, rtol=1e-5, atol=1e-6
    )
    assert score.main(arguments) == 0  # finished: said, and nothing done
    assert f"{output} is finished" in capfd.readouterr().err.replace("\n", "")
    with pytest.raises(UserError, match="exists already and holds something else; --overwrite"):
        score.main([*arguments, "--dtype", "bfloat16"])


def test_scores_of_one_run_only(chain, tiny_data, tmp_path):
    output = tmp_path / "some.arrow"
    config = str(ROOT / "configs/rho1/micro.yaml")
    overrides = [part for o in ("data_sampling.n_samples=10", "dataset.max_length=64") for part in ("--override", o)]
    where = ["--model", str(chain["reference"]), "--data", str(tiny_data), "--output", str(output)]
    with pytest.raises(UserError, match="--stage rho: unknown stage; there is: baseline"):
        score.main([*where, "--stage", "rho"])
    assert score.main([*where, "--stage", "rho1", "--config", config, *overrides]) == 0
    assert len(pa.ipc.open_file(str(output)).read_all()) == 10
    split = open_split(tiny_data, "train")
    file = ScoreFile(output)
    numbers = np.array(pa.ipc.open_file(str(output)).read_all()["row"])
    file.check_solutions("train", numbers, split.lengths[numbers])
    correct = np.flatnonzero(split.is_correct)
    with pytest.raises(UserError, match=r"110 of the 120 solutions .* made for another draw"):
        file.check_solutions("train", correct, split.lengths[correct])


def test_scoring_reads_the_tokens_of_the_data_set(chain, others, tiny_data, tmp_path):
    where = ["--data", str(tiny_data), "--output", str(tmp_path / "scores.arrow")]
    with pytest.raises(UserError, match=r"was tokenised by another tokenizer .* --tokenizer"):
        score.main(["--model", str(others["tokenizer"]), *where])
    assert not list(tmp_path.iterdir())


def test_damaged_scores_are_refused(chain, train_command, tmp_path):
    table = pa.ipc.open_file(str(chain["reference scores"])).read_all()
    scores = [[float("nan")] * len(row) for row in table["scores"].to_pylist()]
    broken = tmp_path / "nan.arrow"
    table = table.set_column(2, "scores", pa.array(scores, pa.list_(pa.float32())))
    with pa.ipc.new_file(str(broken), table.schema) as writer:
        writer.write_table(table)
    common = (f"model.path={chain['policy']}", f"experiment.reference_model={chain['reference']}")
    with pytest.raises(UserError, match="damaged: the scores are not those"):
        train_command(tmp_path / "run", *common, f"weighting.scores={broken}", stage="rho1")


BAD = {
    "no critic": ("verifiable", ("experiment.critic_checkpoint=null",), "experiment.critic_checkpoint is missing"),
    "absent critic": ("verifiable", ("experiment.critic_checkpoint=nowhere",), "nowhere: no such model"),
    "critic without a value head": (
        "verifiable",
        ("experiment.critic_checkpoint={policy}",),
        "has no value head; a critic is a run of",
    ),
    "critic of another trunk": (
        "verifiable",
        ("experiment.critic_checkpoint={full}",),
        "was trained with training.train=full",
    ),
    "critic of another width": (
        "verifiable",
        ("experiment.critic_checkpoint={wide}",),
        "the critic's architecture is not the policy's",
    ),
    "another vocabulary": ("rho1", ("experiment.reference_model={vocabulary}",), "has a vocabulary of 310"),
    "another tokenizer": ("rho1", ("experiment.reference_model={tokenizer}",), "has another tokenizer"),
    "scores of a joint critic": (
        "verifiable",
        ("experiment.critic_checkpoint={critic}", "weighting.scores={full scores}"),
        "weighting.critic is joint",
    ),
    "pairwise loss of a joint critic": (
        "verifiable",
        ("experiment.critic_checkpoint={critic}", "critic.loss_type=pairwise"),
        "reads single solutions, no pairs",
    ),
    "scores of another model": (
        "verifiable",
        ("experiment.critic_checkpoint={critic}", "weighting.critic=frozen", "weighting.scores={full scores}"),
        "they were made by another model",
    ),
    "scores of another kind": (
        "rho1",
        ("experiment.reference_model={reference}", "weighting.scores={full scores}"),
        "of another kind of model; they were made by another model",
    ),
    "no file of scores": (
        "rho1",
        ("experiment.reference_model={reference}", "weighting.scores={policy}/run.json"),
        "not a file of scores",
    ),
    "scheme of another stage": ("verifiable", ("weighting.scheme=rho1",), "stage verifiable has td, uniform"),
    "scheme where nothing is weighed": ("critic", ("weighting.scheme=td",), "stage critic weighs no tokens"),
    "correct only for a critic": ("critic", ("data_sampling.method=correct",), "a critic needs incorrect solutions"),
    "odd rows for pairs": ("critic", ("critic.loss_type=pairwise",), "must be even"),
    "too many for both kinds": ("critic", ("data_sampling.n_samples=200",), "asks for 100, but there are 60"),
    "a value head alone where tokens are trained": (
        "rho1",
        ("training.train=head",),
        "stage rho1 trains tokens; use lora or full",
    ),
    "adapters on nothing": (
        "critic",
        ("training.train=lora", "lora.targets=[wq, output]"),
        "'output' matches no projection; there are: trunk.attention.wk, ",
    ),
    "several heads for a reference": ("reference", ("model.architecture=null",), "trains a next-token model"),
    "clip bounds in the wrong order": ("verifiable", ("weighting.weight_clip_min=9.0",), "weight_clip_min is above"),
    "curriculum phases": (
        "verifiable",
        ("data_sampling.curriculum={phases: [{until: 0.5, weights: {low: 1, medium: 1, high: 1}}]}",),
        "the last one 1.0",
    ),
}


@pytest.fixture(scope="module")
def others(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """Models that do not fit: another width, another vocabulary, another tokenizer."""
    folder = tmp_path_factory.mktemp("others")
    train_tokenizer(["print(input())"] * 9, 280, folder / "other")
    shape = {"n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    models = {
        "wide": ({"dim": 40, "vocab_size": 300, "n_future_tokens": 2, "value_head": "mlp"}, tiny_data / "tokenizer"),
        "vocabulary": ({"dim": 32, "vocab_size": 310, "n_future_tokens": 1}, tiny_data / "tokenizer"),
        "tokenizer": ({"dim": 32, "vocab_size": 300, "n_future_tokens": 1}, folder / "other"),
    }
    for name, (sizes, tokenizer) in models.items():
        config = ModelConfig(**shape, **sizes)
        (folder / name).mkdir()
        store.write_description(folder / name, config, {})
        store.write_params(folder / name, store.random_params(config, 0, "float32", make_mesh((-1, 1, 1))))
        shutil.copytree(tokenizer, folder / name / "tokenizer")
    return {name: folder / name for name in models}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(chain, others, train_command, tmp_path, case: str):
    stage, changes, message = BAD[case]
    places = {**chain, **others}
    more = [
        change.format(**{name: str(path) for name, path in places.items()})
        if "{" in change and "curr" not in change
        else change
        for change in changes
    ]
    with pytest.raises(UserError, match=message):
        train_command(tmp_path / "run", f"model.path={chain['policy']}", *more, stage=stage)
    assert not (tmp_path / "run").exists()


def test_scores_of_changed_data_are_refused(chain, train_command, changed_data, tmp_path):
    common = (f"model.path={chain['policy']}", f"experiment.reference_model={chain['reference']}")
    scores = f"weighting.scores={chain['reference scores']}"
    with pytest.raises(UserError, match="made from other data"):
        train_command(tmp_path / "run", *common, scores, f"dataset.path={changed_data}", stage="rho1")


def test_pairs_stand_one_below_the_other(chain, tiny_data):
    """Also packed, and in every batch."""
    overrides = [
        f"model.path={chain['policy']}",
        "model.architecture=null",
        f"dataset.path={tiny_data}",
        "dataset.max_length=160",
        "data_sampling.n_samples=100",
        "data_sampling.n_validation_samples=20",
        "critic.loss_type=pairwise",
        "training.batch_size=2",
    ]
    run = build_run(STAGES["critic"], load_settings(ROOT / "configs/critic/micro.yaml", overrides))
    assert run.train.documents_per_row > 1
    numbers = batch_numbers(len(run.train), rows_per_step=8, accumulation=1, seed=0, rows_per_unit=2)
    for step in range(3):
        rows = run.train[numbers[step][0]]
        assert rows.outcomes.max(axis=1).tolist() == [1.0, 0.0] * 4
        np.testing.assert_array_equal(rows.segment_ids[0::2].max(axis=1), rows.segment_ids[1::2].max(axis=1))
