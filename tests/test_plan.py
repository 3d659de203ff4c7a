"""Will it fit: production presets compiled for A100s, and estimates on CPU devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wmtp_jax.models import store
from wmtp_jax.planning.compiled import collectives, kernel_calls
from wmtp_jax.settings_file import load_settings, production_preset

ROOT = Path(__file__).parent.parent
PLUGIN = Path(sys.prefix) / "plan"  # where `make test` puts it
STAGES = ("baseline", "critic", "verifiable", "rho1", "reference")


def plan(*arguments: str, plugin: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if plugin:
        environment |= {"PYTHONPATH": str(PLUGIN), "TF_CPP_MIN_LOG_LEVEL": "0"}
    return subprocess.run(
        [sys.executable, "-m", "wmtp_jax.plan", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=check,
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The production preset of every stage, compiled for 4 x A100 80 GB, and what the compiler said."""
    if not (PLUGIN / "jax_plugins").is_dir():
        pytest.skip(f"the CUDA plugin is not at {PLUGIN} (make test installs it where it can be had)")
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    done = plan("--record", str(file), plugin=True)
    return {record["stage"]: record for record in json.loads(file.read_text())}, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_production_presets_fit(compiled, stage):
    record = compiled[0][stage]
    assert record["compiled_for"] == "a100-80gb"
    assert record["peak_bytes_per_device"] <= 0.9 * record["capacity_bytes"]
    assert record["fits"]
    # Nothing that the table splits is there whole: 4 bytes a weight, twice that for AdamW, on 4 cards.
    settings = load_settings(production_preset(stage), [])
    total = store.count_params(store.build(settings.model.architecture)[1])["total"]
    assert record["parameters_bytes"] == pytest.approx(total * 4 / 4, rel=1e-2)
    if stage != "critic":
        assert record["optimizer_bytes"] == pytest.approx(2 * total * 4 / 4, rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_attention_is_a_fused_kernel(compiled, stage):
    record = compiled[0][stage]
    assert record["kernels"]["__gpu$xla.gpu.triton"] > 0  # which knows documents, because rows are packed
    assert not record["holds_attention_scores"]


def test_attention_of_rows_of_one_document_is_cudnn(compiled):
    done = plan("--stage", "baseline", "--override", "dataset.packing=false", "--json", plugin=True)
    record = json.loads(done.stdout)
    assert record["kernels"]["__cudnn$fmhaSoftmax"] > 0
    assert record["kernels"]["__cudnn$fmhaSoftmaxBackward"] > 0
    assert not record["holds_attention_scores"]


def test_traffic_is_near_its_floor(compiled):
    """Two gathers and one scatter of all weights in 16 bits, each of the four micro-steps."""
    record = compiled[0]["baseline"]
    weights = 6_738_415_616 * 2
    floor = 4 * 3 * weights
    moved = {part["kind"]: part["bytes"] for part in record["collectives"]}
    assert moved["all-gather"] + moved["reduce-scatter"] <= 1.1 * floor
    assert moved["all-gather"] > 0.9 * 4 * 2 * weights  # the counting sees them
    assert record["collective_bytes"] <= 1.1 * floor


def test_the_compiler_replicates_nothing(compiled):
    assert "Involuntary full rematerialization" not in compiled[1]
    assert "Can't reduce memory use" not in compiled[1]


def test_the_recorded_table_is_what_the_compiler_says(compiled):
    recorded = {record["stage"]: record for record in json.loads((ROOT / "configs/plan.json").read_text())}
    assert recorded.keys() == compiled[0].keys()
    for stage, record in recorded.items():
        new = compiled[0][stage]
        assert record["remat"] == new["remat"]
        exact = record["jax"] == new["jax"]
        for name in ("peak_bytes_per_device", "collective_bytes", "flops_per_step", "step_seconds", "hours"):
            assert new[name] == pytest.approx(record[name], rel=1e-3 if exact else 0.1), (stage, name)


def test_an_estimate_needs_no_plugin_and_little_memory():
    # Not ru_maxrss: that starts at the resident set of the process it was forked from, this one.
    script = (
        "import re, sys; from wmtp_jax import plan; plan.main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", script, "--stage", "baseline", "--estimate", "--json", "--price", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    figures, peak_kib = map(json.loads, done.stdout.splitlines())
    assert peak_kib < 2 * 2**20
    assert figures["holds_attention_scores"]  # XLA's attention, on a CPU
    assert figures["compiled_for"] == "cpu (estimate)"
    assert figures["parameters_bytes"] == pytest.approx(6_738_415_616, rel=1e-2)
    assert figures["cost"] == pytest.approx(figures["hours"] * 2 * 4)
    assert figures["steps"] == 3906
    # 6 operations a weight and token, the largest part of what a step needs.
    assert figures["model_flops_per_step"] > 6 * 6.6e9 * 64 * 2048


def test_moments_in_the_memory_of_the_host_leave_the_card():
    """Also beside a frozen model that scores: its weights stay."""
    here, away = (
        json.loads(plan("--stage", "rho1", "--estimate", "--json", *small, *more).stdout)
        for small in [("--override", "training.batch_size=1", "--override", "dataset.max_length=256")]
        for more in ((), ("--override", "training.offload_optimizer=true"))
    )
    assert here["scorer_bytes"] == pytest.approx(2_701_560_320, rel=1e-2)
    freed = here["peak_bytes_per_device"] - away["peak_bytes_per_device"]
    assert 0 < freed <= here["optimizer_bytes"]
    # At least the state, a gradient and the frozen model are there when the update is made.
    parts = sum(here[f"{name}_bytes"] for name in ("parameters", "gradients", "optimizer", "scorer"))
    assert away["peak_bytes_per_device"] >= parts


def test_what_does_not_fit_is_told_with_a_remedy(tmp_path):
    settings = (ROOT / "configs/baseline/baseline.yaml").read_text().replace("remat: dots", "remat: none")
    (tmp_path / "large.yaml").write_text(settings)
    done = plan("--stage", "baseline", "--config", str(tmp_path / "large.yaml"), "--estimate")
    assert "does not fit" in done.stdout
    assert "set training.remat=" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", "basline"), "unknown stage; there is: baseline"),
        (("--stage", "baseline", "--device", "v100"), "unknown; there is a100-80gb, h100-80gb, h200"),
        (("--stage", "baseline", "--devices", "3"), "must multiply to the number of devices, which is 3"),
        (("--stage", "baseline", "--devices", "0"), "--devices 0"),
        (("--stage", "baseline", "--record", "x.json"), "leave --stage and --config out"),
        (("--record", "nowhere/x.json"), "there is no folder nowhere"),
        (("--stage", "baseline", "--efficiency", "2"), "a share of the peak"),
        (("--stage", "baseline", "--override", "model.attention=cudnn", "--estimate"), "it needs an NVIDIA GPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_bad_input(arguments, message):
    done = plan(*arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


HLO = """\
HloModule step

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[], bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%p), index=1
  %shard = bf16[2,4]{1,0} slice(%x)
  %ag = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%shard), dimensions={0}, replica_groups=[1,4]<=[4]
  %done = bf16[8,4]{1,0} all-gather-done(%ag)
  %rs = bf16[2,4]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=4,'b'=1] {'a'}, dimensions={0}, to_apply=%add
  %call = bf16[8,4]{1,0} custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"
}

%test (p: (s32[], bf16[8,4])) -> pred[] {
  %p.1 = (s32[], bf16[8,4]{1,0}) parameter(0)
}

ENTRY %main (a: bf16[8,4]) -> f32[3] {
  %a = bf16[8,4]{1,0} parameter(0)
  %w = (s32[], bf16[8,4]{1,0}) while(%a), body=%body, condition=%test, backend_config={"known_trip_count":{"n":"5"}}
  %sum = f32[3]{0} constant({1, 2, 3})
  ROOT %ar = f32[3]{0} all-reduce(%sum), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_traffic_and_kernels_are_counted_with_the_turns_of_loops():
    assert collectives(HLO) == [
        ("all-gather", 5, 5 * 8 * 4 * 2, 5 * 8 * 4 * 2 * 3 // 4),
        ("reduce-scatter", 5, 5 * 8 * 4 * 2, 5 * 8 * 4 * 2 * 3 // 4),
        ("all-reduce", 1, 3 * 4, 2 * 3 * 4 // 2),
    ]
    assert collectives(HLO, HLO)[0] == ("all-gather", 10, 10 * 8 * 4 * 2, 10 * 8 * 4 * 2 * 3 // 4)
    assert kernel_calls(HLO) == {"__cudnn$fmhaSoftmax": 5}
