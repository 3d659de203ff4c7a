"""One run on several processes: 2 processes with 2 devices each do what 1 process with 4 devices does."""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

import wmtp_jax
from wmtp_jax import console
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.parallel.distributed import Cluster, find_cluster, gather_processes, reach_coordinator
from wmtp_jax.parallel.mesh import resolve_shape
from wmtp_jax.processes import agreed
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.run_directory import check_alike, check_shared
from wmtp_jax.training.saved import saved_steps
from wmtp_jax.training.tracking import read_metrics

MESH = ("runtime.mesh={data: 2, fsdp: 2, tensor: 1}", "checkpoint.save_every_steps=3", "training.n_epochs=20")
ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def started(arguments: list[str], only: tuple[int, ...] = (0, 1), **variables: str):
    """The training command in 2 processes of 2 devices each; they are gone when the context is left."""
    address = f"127.0.0.1:{free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_"))}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "WMTP_HEARTBEAT_TIMEOUT": "5",
        **variables,
    }
    command = [sys.executable, "-m", "wmtp_jax.train", *arguments]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in only
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: list[subprocess.Popen]) -> list[tuple[str, str]]:
    """What each process prints; all are read at once, so that none waits for a full pipe."""
    said: dict[int, tuple[str, str]] = {}
    threads = [
        threading.Thread(target=lambda n=n, p=p: said.update({n: p.communicate(timeout=120)}))
        for n, p in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said[number] for number in range(len(processes))]


def leaves(path: str) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(wmtp_jax.load_model(path), nnx.Param))]


def assert_same_run(ours: Path, theirs: Path):
    for mine, other in zip(leaves(f"{ours}@latest"), leaves(f"{theirs}@latest"), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
    lines = [
        [{k: v for k, v in line.items() if not k.startswith(("perf/", "system/"))} for line in read_metrics(folder)]
        for folder in (ours, theirs)
    ]
    assert len(lines[0]) == len(lines[1])
    for mine, other in zip(*lines, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def runs(train_arguments, train_command, tmp_path_factory) -> tuple[Path, Path, list[tuple[str, str]]]:
    """Six updates in one process, the same in two, and what the two said."""
    folder = tmp_path_factory.mktemp("runs")
    train_command(folder / "one", *MESH, "training.max_steps=6")
    with started([*train_arguments(folder / "two", *MESH, "training.max_steps=6"), "--json"]) as processes:
        said = finish(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    return folder / "one", folder / "two", said


def test_two_processes_do_what_one_does(runs):
    one, two, said = runs
    assert_same_run(two, one)
    figures = json.loads(said[0][0])  # nothing but the figures
    assert figures["steps"] == 6
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def test_one_process_speaks(runs):
    (_, spoken), (out, silent) = runs[2]
    assert "step 6: val/loss" in spoken
    assert out == ""
    assert "val/loss" not in silent
    assert "step 6" not in silent


def test_one_process_continues_what_two_began(runs, train_command, tmp_path: Path):
    one, two, _ = runs
    figures = [
        train_command(Path(shutil.copytree(run, tmp_path / run.name)), *MESH, "training.max_steps=8")
        for run in (one, two)
    ]
    assert [(f["first_step"], f["steps"]) for f in figures] == [(6, 8)] * 2
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_a_killed_process_ends_the_other_and_the_run_continues(runs, train_arguments, train_command, tmp_path: Path):
    """Two processes continue what one began; one of them is killed; one process continues, as if nothing had been."""
    folder, never_killed = (Path(shutil.copytree(runs[0], tmp_path / name)) for name in ("killed", "never-killed"))
    with started(train_arguments(folder, *MESH)) as (first, second):
        deadline = time.monotonic() + 100
        while 9 not in saved_steps(folder) and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.02)
        second.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        (_, error), _ = finish([first, second])
        assert time.monotonic() - killed < 30
        assert first.returncode not in (0, None), error
    assert f"continuing {folder} from step 6" in error.replace("\n", " ")
    last = saved_steps(folder)[-1]
    assert last >= 9
    for run in (folder, never_killed):
        train_command(run, *MESH, f"training.max_steps={last + 1}")
    assert_same_run(folder, never_killed)


def test_a_signal_to_one_process_stops_all_at_the_same_step(runs, train_arguments, train_command, tmp_path: Path):
    folder, never_stopped = (Path(shutil.copytree(runs[0], tmp_path / name)) for name in ("stopped", "never-stopped"))
    by_time = "checkpoint.save_every_minutes=1e-9"  # the processes agree on these steps too
    with started([*train_arguments(folder, *MESH, by_time), "--json"]) as (first, second):
        deadline = time.monotonic() + 100
        while not any(step > 6 for step in saved_steps(folder)) and time.monotonic() < deadline:
            time.sleep(0.02)
        second.send_signal(signal.SIGTERM)
        (out, error), _ = finish([first, second])
        assert [first.returncode, second.returncode] == [0, 0], error
    figures = json.loads(out)
    assert figures["stopped_by"] == "another process"
    assert "resume with: python -m wmtp_jax.train" in error
    last = saved_steps(folder)[-1]
    assert last == figures["steps"] > 6
    for run in (folder, never_stopped):
        train_command(run, *MESH, f"training.max_steps={last + 1}")
    ours, theirs = (leaves(f"{run}@latest") for run in (folder, never_stopped))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


def test_bad_input_is_told_once_and_ends_all(runs, train_arguments):
    one = runs[0]
    with started(train_arguments(one, *MESH, "training.learning_rate=1e-4")) as processes:
        (_, spoken), (_, silent) = finish(processes)
        assert [process.returncode for process in processes] == [2, 2]
    assert "training.learning_rate: 0.01 there, 0.0001 now" in spoken
    assert "error" not in silent


def test_what_one_process_lacks_ends_all(train_arguments, tiny_data: Path, tmp_path: Path):
    """Process 1 is given another folder of data, one that is not there."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "1").mkdir()
    with contextlib.ExitStack() as stack:
        port = str(free_port())
        address = dict.fromkeys(("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"), f"127.0.0.1:{port}")
        processes = []
        for number, data in enumerate((tmp_path / "data", tmp_path / "absent")):
            arguments = train_arguments(tmp_path / "run", *MESH, f"dataset.path={data}")
            processes += stack.enter_context(started(arguments, only=(number,), **address))
        (_, spoken), (_, silent) = finish(processes)
        assert [process.returncode for process in processes] == [2, 2]
    assert f"process 1, checking what is asked for: {tmp_path / 'absent'}: no such data set" in spoken.replace("\n", "")
    assert "error" not in silent
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_never_comes(train_arguments, tmp_path: Path):
    with started(train_arguments(tmp_path, *MESH), only=(1,), WMTP_CONNECT_TIMEOUT="1") as (process,):
        ((_, error),) = finish([process])
        assert process.returncode == 1
    assert "process 1 of 2 has waited 1 s for process 0, the coordinator at 127.0.0.1:" in error.replace("\n", " ")


def test_processes_must_do_the_same_in_the_same_folder(monkeypatch, tmp_path: Path):
    run = SimpleNamespace(directory=tmp_path)
    facts = {"training.batch_size": 1, "saved steps": [3]}
    check_alike(run, [facts, facts])
    with pytest.raises(UserError, match=r"process 1 was .* another run .*\n  training.batch_size: 1 in process 0, 2 "):
        check_alike(run, [facts, {**facts, "training.batch_size": 2}])
    # A curriculum, or an architecture, has names of its own: those of either process count.
    curriculum = {"data_sampling.curriculum.bins": 4}
    with pytest.raises(UserError, match=r"another run .*\n  data_sampling.curriculum.bins: 4 in process 0, None there"):
        check_alike(run, [{**facts, **curriculum}, facts])
    with pytest.raises(UserError, match=r"another run .*\n  data_sampling.curriculum.bins: None in process 0, 4 there"):
        check_alike(run, [facts, {**facts, **curriculum}])
    with pytest.raises(UserError, match=r"process 0 sees the saved steps \[3\] there, process 1 \[\]; .* shared"):
        check_alike(run, [facts, {**facts, "saved steps": []}])
    monkeypatch.setattr("wmtp_jax.training.run_directory.is_first", lambda: False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UserError, match="process 0 has made it, but process 0 does not see it"):
        check_shared(run)
    (tmp_path / "run.json").touch()
    check_shared(run)


@pytest.mark.parametrize("kind", [UserError, Failure])
def test_an_error_that_the_others_do_not_hear_is_told_by_its_process(monkeypatch, kind):
    def nobody_comes(*_) -> None:
        raise TimeoutError

    monkeypatch.setattr("wmtp_jax.parallel.distributed.exchange", nobody_comes)
    monkeypatch.setattr("wmtp_jax.parallel.distributed.process_id", lambda: 3)
    monkeypatch.setattr(console.err, "quiet", True)
    here = re.escape(socket.gethostname())
    with pytest.raises(kind, match=rf"process 3 \({here}\), training: disk full"), agreed("training", wait_s=1):
        raise kind("disk full")
    assert not console.err.quiet


def meet(*others: tuple[int, int], n_processes: int = 3, timeout: float = 1.0) -> list[Exception | None]:
    """Process 0 of ``n_processes``, and ``others`` (number, of how many): what each of them comes upon."""
    address = f"127.0.0.1:{free_port()}"
    met: dict[int, Exception | None] = {}

    def run(number: int, function, *arguments) -> None:
        try:
            met[number] = function(*arguments)
        except (TimeoutError, ValueError) as error:
            met[number] = error

    calls = [(gather_processes, Cluster(address, n_processes, 0), timeout, address)]
    calls += [(reach_coordinator, Cluster(address, count, number), 10 * timeout) for number, count in others]
    threads = [threading.Thread(target=run, args=(n, *call)) for n, call in enumerate(calls)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return [met[number] for number in range(len(calls))]


def test_processes_meet():
    assert meet((2, 3), (1, 3), timeout=10) == [None, None, None]


def test_the_missing_are_named():
    first, other = meet((2, 4), n_processes=4, timeout=0.5)
    assert isinstance(first, TimeoutError)
    assert "2 of 4 processes have not come to process 0" in str(first)
    assert "in 0.5 s: number 1, 3." in str(first)
    assert str(other) == str(first)  # what is there is told too
    assert isinstance(other, TimeoutError)


def test_processes_that_contradict_each_other():
    for error in meet((1, 2), timeout=10):
        assert isinstance(error, ValueError)
        assert "process 1 was started as one of 2, process 0 as one of 3" in str(error)
    for error in meet((1, 3), (1, 3), timeout=10):
        assert isinstance(error, ValueError)
        assert "two processes were started as number 1" in str(error)


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}
TORCH = {"MASTER_ADDR": "master", "WORLD_SIZE": "2"}
NODES = {"MASTER_ADDR": "master", "NNODES": "2"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables that are given, and no other that `find_cluster` looks at."""
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "MASTER_", "JOB_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "NODE_RANK", "WORLD_SIZE", "NNODES", "NUM_NODES", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize(
    ("variables", "cluster"),
    [
        ({}, None),
        ({**JAX, "JAX_PROCESS_ID": "3"}, Cluster("a:1", 4, 3)),
        ({**JAX, "JOB_COMPLETION_INDEX": "0"}, Cluster("a:1", 4, 0)),
        ({"JOB_COMPLETION_INDEX": "0"}, None),
        ({**SLURM, "JAX_NUM_PROCESSES": "1"}, None),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, Cluster("node07:61517", 2, 1)),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2"}, Cluster("node07:61517", 2, 1, [0])),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_COORDINATOR_PORT": "5"}, Cluster("node07:5", 2, 1)),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({**TORCH, "RANK": "1"}, Cluster("master:29500", 2, 1)),
        ({**TORCH, "RANK": "1", "LOCAL_WORLD_SIZE": "1"}, Cluster("master:29500", 2, 1)),
        ({**TORCH, "RANK": "1", "NODE_RANK": "7", "NNODES": "9"}, Cluster("master:29500", 2, 1)),
        ({**NODES, "NODE_RANK": "0", "MASTER_PORT": "9"}, Cluster("master:9", 2, 0)),
        ({**NODES, "NODE_RANK": "1", "WORLD_SIZE": "16"}, Cluster("master:29500", 2, 1)),
        ({"MASTER_ADDR": "master", "NUM_NODES": "3", "NODE_RANK": "2"}, Cluster("master:29500", 3, 2)),
        ({**TORCH, "NODE_RANK": "0", "WORLD_SIZE": "1"}, None),
        ({**TORCH, "RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"MASTER_ADDR": "master"}, None),
    ],
)
def test_environment(environment, variables: dict[str, str], cluster: Cluster | None):
    environment(variables)
    assert find_cluster() == cluster


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (JAX, "JAX_PROCESS_ID is not set"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES is not set"),
        ({**JAX, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4, but there are 4 processes"),
        ({**JAX, "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1'; it must be a whole number"),
        ({**JAX, "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "a"}, "'a'; it must be host:port"),
        ({**TORCH, "RANK": "first"}, "RANK is 'first'; it must be a whole number"),
        ({**TORCH, "NODE_RANK": "0"}, "NODE_RANK and WORLD_SIZE are no pair .*; set JAX_COORDINATOR_ADDRESS"),
        ({**NODES, "RANK": "0"}, "RANK and NNODES are no pair"),
        ({**TORCH, "RANK": "0", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE is 4: torchrun .* --nproc-per-node=1"),
        ({**NODES, "NODE_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE is 4: .* one process a host"),
    ],
)
def test_bad_environment(environment, variables: dict[str, str], message: str):
    environment(variables)
    with pytest.raises(ValueError, match=message):
        find_cluster()


def test_one_process_needs_nothing_private_of_jax(environment, monkeypatch):
    environment({})
    for name in ("clusters", "distributed"):
        monkeypatch.setitem(sys.modules, f"jax._src.{name}", None)  # an import of it fails
        monkeypatch.delattr(f"jax._src.{name}")
    alone = importlib.util.module_from_spec(importlib.util.find_spec("wmtp_jax.parallel.distributed"))
    alone.__spec__.loader.exec_module(alone)
    assert alone.find_cluster() is None
    assert (alone.is_several(), alone.is_first(), alone.process_id(), alone.exchange(1)) == (False, True, 0, [1])
    environment(SLURM)
    with pytest.raises(ImportError, match=r"jax\._src"):
        alone.find_cluster()


@pytest.mark.parametrize("guide", ["scaling.md", "scaling.ko.md"])
def test_manifests_of_the_guide(environment, guide: str):
    """The environment that a pod gets from the examples makes two processes that find each other."""
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    manifests = [m for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) for m in yaml.safe_load_all(block)]
    jobset, service, job = manifests
    assert [manifest["kind"] for manifest in manifests] == ["JobSet", "Service", "Job"]
    name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    hosts = (
        f"{name}-{replicated['name']}-0-0.{network['subdomain']}",
        f"{job['metadata']['name']}-0.{service['metadata']['name']}",
    )
    for host, spec in zip(hosts, (replicated["template"]["spec"], job["spec"]), strict=True):
        assert spec["completionMode"] == "Indexed"
        assert spec["parallelism"] == spec["completions"] == 2
        (container,) = spec["template"]["spec"]["containers"]
        environment({item["name"]: item["value"] for item in container["env"]} | {"JOB_COMPLETION_INDEX": "1"})
        assert find_cluster() == Cluster(f"{host}:1234", 2, 1)
        arguments = container["command"][3:]
        overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--override"]
        settings = load_settings(ROOT / "configs/baseline/baseline.yaml", overrides)
        n_devices = 2 * container["resources"]["limits"]["nvidia.com/gpu"]
        assert resolve_shape(settings.runtime.mesh.shape, n_devices) == (2, 4, 1)
        rows = settings.training.batch_size * settings.training.gradient_accumulation_steps * n_devices
        assert rows == 64


def test_scoring_runs_as_one_process(environment, tmp_path: Path):
    from wmtp_jax import score

    environment({**TORCH, "RANK": "1"})
    with pytest.raises(UserError, match=r"score runs as one process.*speaks of 2 processes"):
        score.main(["--model", "m", "--data", "d", "--output", str(tmp_path / "s")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("runtime.mesh={data: 2, fsdp: 4, tensor: 1}",), "number of devices, which is 4"),
        (("runtime.mesh={data: 1, fsdp: 1, tensor: 4}", "model.architecture.vocab_size=302"), "vocab_size 302"),
        (("runtime.mesh={data: 1, fsdp: 1, tensor: 4}", "model.architecture.ffn_dim=66"), "ffn_dim 66"),
        (
            ("runtime.mesh={data: 1, fsdp: 1, tensor: 4}", "model.architecture.n_heads=2"),
            r"runtime.mesh.tensor is 4, which does not divide the model's n_heads 2; .*next smaller is 2\)",
        ),
        (
            (
                "runtime.mesh={data: 1, fsdp: 1, tensor: 4}",
                "model.architecture.n_kv_heads=1",
                "model.architecture.dim=24",
            ),
            "n_kv_heads x head width 6",
        ),
        (
            (
                "runtime.mesh={data: 1, fsdp: 4, tensor: 1}",
                "model.architecture.dim=34",
                "model.architecture.head_dim=8",
            ),
            "runtime.mesh.fsdp is 4, which does not divide the model's dim 34",
        ),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_mesh_that_does_not_fit(train_command, tmp_path: Path, changes, message: str, flags):
    if flags and "number of devices" in message:
        pytest.skip("sizes that are all given can be planned on a machine with other devices")
    with pytest.raises(UserError, match=message):
        train_command(tmp_path / "run", *changes, flags=flags)
    assert not (tmp_path / "run").exists()
