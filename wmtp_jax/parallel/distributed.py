"""One run on several processes, usually one a host: who takes part, how they meet, what they tell each other.

`jax.distributed` does the work. What is added: it is started where the environment says that there are several
processes, and processes that do not come are named. (jax itself ends with SIGABRT then, before Python can say why.)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

CONNECT_TIMEOUT, HEARTBEAT_TIMEOUT = "WMTP_CONNECT_TIMEOUT", "WMTP_HEARTBEAT_TIMEOUT"
_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_TORCH_PORT = "29500"  # what PyTorch listens on where MASTER_PORT is not set
_SCHEDULERS = {"slurm": "SLURM_STEP_NODELIST", "ompi": "OMPI_MCA_orte_hnp_uri"}  # jax's name, what a step of it sets
_LOCAL_COUNT = "LOCAL_WORLD_SIZE"
_names = itertools.count()


class Cluster(NamedTuple):
    """The processes of a run.

    Attributes:
      coordinator: ``host:port`` where process 0 listens.
      n_processes: how many there are.
      process_id: which of them this is, from 0.
      local_devices: numbers of the devices of this host that the process uses; None: all of them.
    """

    coordinator: str
    n_processes: int
    process_id: int
    local_devices: list[int] | None = None


def find_cluster() -> Cluster | None:
    """The processes that the environment speaks of; None where there is one.

    The first of these that is there counts: ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``
    (or ``JOB_COMPLETION_INDEX``, which Kubernetes sets in an indexed Job); a step of SLURM or Open MPI, as jax reads
    it; ``MASTER_ADDR`` with ``RANK`` and ``WORLD_SIZE``, else with ``NODE_RANK`` and ``NNODES`` or ``NUM_NODES``.

    Raises:
      ValueError: the variables contradict each other, some are missing, or they speak of several processes a host.
    """
    environment = os.environ
    address = environment.get(_ADDRESS)

    def first(*names: str) -> str | None:
        return next((name for name in names if environment.get(name)), None)

    if environment.get(_COUNT) == "1":
        return None
    if environment.get(_COUNT):
        process = first(_ID, "JOB_COMPLETION_INDEX")
        if not address or process is None:
            raise _missing(_ID if address else _ADDRESS)
        return _cluster(address, _number(_COUNT), _number(process), process)
    for name, sign in _SCHEDULERS.items():
        if sign not in environment:
            continue
        from jax._src.clusters import ClusterEnv  # no public name; who needs no scheduler does not depend on it

        kind = next(kind for kind in ClusterEnv._cluster_types if kind.name == name)
        if kind.is_env_present():
            port = environment.get("JAX_COORDINATOR_PORT")
            where = address or kind.get_coordinator_address(timeout_secs=None, override_coordinator_port=port)
            # jax gives each process one device of its host, even where nobody takes the rest.
            alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
            local = None if alone else kind.get_local_process_id()
            devices = None if local is None else [local]
            return _cluster(where, kind.get_process_count(), kind.get_process_id(), f"the number in {name}", devices)
    if address:
        raise _missing(_COUNT)
    if not environment.get("MASTER_ADDR"):
        return None
    # Ranks go with ranks and nodes with nodes: the number of a node says nothing beside a count of GPUs.
    pairs = (("RANK", first("WORLD_SIZE")), ("NODE_RANK", first("NNODES", "NUM_NODES")))
    for process, count in pairs:
        if environment.get(process) and count:
            if environment.get(_LOCAL_COUNT) and _number(_LOCAL_COUNT) > 1:
                raise ValueError(
                    f"{_LOCAL_COUNT} is {environment[_LOCAL_COUNT]}: torchrun starts a process a GPU, and each would "
                    "take all GPUs of its host. Start one process a host: without torchrun, or with --nproc-per-node=1"
                )
            where = f"{environment['MASTER_ADDR']}:{environment.get('MASTER_PORT') or _TORCH_PORT}"
            return _cluster(where, _number(count), _number(process), process)
    rank, counted = first("RANK", "NODE_RANK"), first("WORLD_SIZE", "NNODES", "NUM_NODES")
    if rank and counted and _number(counted) > 1:
        raise ValueError(
            f"{rank} and {counted} are no pair (RANK goes with WORLD_SIZE, NODE_RANK with NNODES or NUM_NODES); set "
            f"{_ADDRESS}, {_COUNT} (hosts) and {_ID} (of this host, from 0)"
        )
    return None


def _cluster(
    address: str, n_processes: int, process_id: int, which: str, devices: list[int] | None = None
) -> Cluster | None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"the coordinator's address is {address!r}; it must be host:port, as in node-0:1234")
    if n_processes > 1 and process_id >= n_processes:
        raise ValueError(f"{which} is {process_id}, but there are {n_processes} processes, numbered from 0")
    return Cluster(address, n_processes, process_id, devices) if n_processes > 1 else None


def _missing(name: str) -> ValueError:
    return ValueError(
        f"{name} is not set; several processes need {_ADDRESS} (host:port of process 0), {_COUNT} and {_ID}, and one "
        "needs none of them"
    )


def start(cluster: Cluster) -> None:
    """Meets the other processes and starts `jax.distributed`; before any array is made.

    A process that dies ends the others: jax aborts them after ``WMTP_HEARTBEAT_TIMEOUT`` seconds (100).

    Raises:
      TimeoutError: not all have come within ``WMTP_CONNECT_TIMEOUT`` seconds (300).
      ValueError: another process was started for another number of processes, or with the same number.
      OSError: process 0 cannot listen on the coordinator's address.
    """
    timeout = _number(CONNECT_TIMEOUT, 1) if os.environ.get(CONNECT_TIMEOUT) else 300
    heartbeat = _number(HEARTBEAT_TIMEOUT, 1) if os.environ.get(HEARTBEAT_TIMEOUT) else 100
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    if cluster.process_id == 0:
        gather_processes(cluster, timeout, bind)
    else:
        reach_coordinator(cluster, timeout)
    # Signals are the business of `wmtp_jax.interruption`, for one process and for several.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.n_processes,
        cluster.process_id,
        local_device_ids=cluster.local_devices,
        cluster_detection_method="deactivate",  # it would choose one device a process again
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
        coordinator_bind_address=bind,
    )


def gather_processes(cluster: Cluster, timeout: float, bind: str | None = None) -> None:
    """Process 0 waits here until every other one has said that it is there. Raises as `start` does."""
    host, _, port = (bind or f":{cluster.coordinator.rpartition(':')[2]}").rpartition(":")
    host = host.strip("[]")
    both = not host.strip(":") and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    deadline = time.monotonic() + timeout
    here: dict[int, socket.socket] = {}

    def give_up(error: Exception, *more: socket.socket) -> Exception:
        for connection in (*here.values(), *more):
            with contextlib.suppress(OSError):  # that one has gone already
                _send(connection, f"{type(error).__name__} {error}")
        return error

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            socket.create_server((host, int(port)), family=family, backlog=128, dualstack_ipv6=both)
        )
        while missing := [process for process in range(1, cluster.n_processes) if process not in here]:
            if (left := deadline - time.monotonic()) <= 0:
                raise give_up(
                    TimeoutError(
                        f"{len(missing)} of {cluster.n_processes} processes have not come to process 0, the "
                        f"coordinator at {cluster.coordinator}, in {timeout:g} s: number "
                        f"{', '.join(map(str, missing))}. Look at what they print; {CONNECT_TIMEOUT} sets the seconds"
                    )
                )
            server.settimeout(left)
            try:
                connection = stack.enter_context(contextlib.closing(server.accept()[0]))
                connection.settimeout(min(left, 10))
                word, process_id, n_processes = _receive(connection).split()
                number = int(process_id)
                if word != "wmtp_jax" or int(n_processes) < 1:
                    continue
            except (ValueError, OSError):  # the time is over, or something else knocks at this port
                continue
            wrong = None
            if int(n_processes) != cluster.n_processes:
                wrong = f"process {number} was started as one of {n_processes}, process 0 as one of "
                wrong += f"{cluster.n_processes}; all need the same number"
            elif not 0 < number < cluster.n_processes or (number in here and _is_there(here[number])):
                wrong = f"two processes were started as number {number}; each needs its own number"
            if wrong:
                raise give_up(ValueError(wrong), connection)
            here[number] = connection
        for connection in here.values():
            _send(connection, "go")
        for connection in here.values():
            _receive(connection)  # until it has hung up: the port is free then for what comes


def reach_coordinator(cluster: Cluster, timeout: float) -> None:
    """Every other process waits here until process 0 says that all are there. Raises as `start` does."""
    host, _, port = cluster.coordinator.rpartition(":")
    deadline, seen = time.monotonic() + timeout, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        answer = text = ""
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 10)) as connection:
                _send(connection, f"wmtp_jax {cluster.process_id} {cluster.n_processes}")
                # A second more: process 0 knows better what is amiss.
                connection.settimeout(max(deadline - time.monotonic(), 0) + 1)
                answer, _, text = _receive(connection).partition(" ")
            seen = "it hung up"
        except OSError as error:
            seen = error.strerror or str(error)
        if answer == "go":
            return
        if answer:
            raise TimeoutError(text) if answer == TimeoutError.__name__ else ValueError(text)
        time.sleep(min(0.2, timeout / 10))
    raise TimeoutError(
        f"process {cluster.process_id} of {cluster.n_processes} has waited {timeout:g} s for process 0, the "
        f"coordinator at {cluster.coordinator} ({seen}). Was it started, does its name resolve from here, is the port "
        f"open? {CONNECT_TIMEOUT} sets the seconds"
    )


def is_several() -> bool:
    """Whether there is more than one process."""
    return jax.distributed.is_initialized()


def process_id() -> int:
    """The number of this process; 0 where there is one."""
    return _state().process_id if is_several() else 0


def is_first() -> bool:
    """Whether this is process 0, which alone writes files and speaks."""
    return process_id() == 0


def exchange(value: Any, wait_s: float = 86_400.0) -> list[Any]:
    """Every process's ``value`` (as JSON), by process; every process must call it, in the same order.

    Raises:
      TimeoutError: not all have come here within ``wait_s`` seconds. (One that has died ends all.)
    """
    if not is_several():
        return [value]
    state = _state()
    client, folder = state.client, f"wmtp_jax/{next(_names)}"
    client.key_value_set(f"{folder}/{state.process_id}", json.dumps(value))
    try:
        client.wait_at_barrier(folder, int(wait_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(f"the other processes have not come within {wait_s:g} s") from error
    said = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(f"{folder}/")}
    return [json.loads(said[process]) for process in range(state.num_processes)]


class Meeting:
    """Has all processes do something after the same step, though any of them may ask for it while they train.

    A process may be two steps ahead of another: it starts step s when it has the figures of step s - 2, which took all
    of them. So what one asks for happens three steps on, when all have heard of it. One process alone does not wait.

    Args:
      name: of what is asked for; another for each purpose.
    """

    _AHEAD = 3

    def __init__(self, name: str):
        self._name, self._held = f"{next(_names)}/{name}", 0  # processes make theirs in the same order
        self._step: int | None = None

    def ask(self, step: int) -> None:
        """Asks for it; ``step`` is the last that this process has started. The first who asks is heard."""
        if not is_several():
            self._step = step
            return
        with _but_for("ALREADY_EXISTS"):  # another process was first
            _state().client.key_value_set(self._key, str(step + self._AHEAD))

    def due(self, step: int) -> bool:
        """Whether it is to be done now; called once after the start of every step, which ``step`` is."""
        if is_several() and self._step is None:
            with _but_for("NOT_FOUND"):  # nobody has asked
                self._step = int(_state().client.key_value_try_get(self._key))
        if self._step is None or step < self._step:
            return False
        self._step, self._held = None, self._held + 1
        return True

    @property
    def _key(self) -> str:
        return f"wmtp_jax/meeting/{self._name}/{self._held}"


@contextlib.contextmanager
def _but_for(code: str) -> Iterator[None]:
    """Passes over one kind of answer of jax's key-value store."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if code not in str(error):
            raise


def _state() -> Any:
    """What jax knows of the processes, with their key-value store: no public name; Orbax takes it from there too."""
    from jax._src.distributed import global_state

    return global_state


def _number(name: str, minimum: int = 0) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < minimum:
        raise ValueError(f"{name} is {text!r}; it must be a whole number, {minimum} or more")
    return int(text)


def _send(connection: socket.socket, text: str) -> None:
    connection.sendall(f"{text}\n".encode())


def _receive(connection: socket.socket) -> str:
    """One line; empty if the other side hangs up first."""
    with connection.makefile("r", encoding="utf-8", errors="replace") as file:
        return file.readline(2000).rstrip("\n")


def _is_there(connection: socket.socket) -> bool:
    """Whether the other side has not hung up; it sends nothing while it waits."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(10)
