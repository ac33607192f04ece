"""Runs of several processes: `join` finds the other processes and starts `jax.distributed`.

Without flags, a process joins others if one of these holds, tried in this order:

- Open MPI started it together with others (`OMPI_COMM_WORLD_SIZE`; version 5 needs the package mpi4py);
- it is one of several tasks of a Slurm step (`srun`: `SLURM_STEP_NUM_TASKS`). The shell of an allocation, a batch
  script and a notebook are not, however many tasks the allocation has;
- it runs on one of several TPU hosts: `TPU_PROCESS_ADDRESSES` or `TPU_WORKER_HOSTNAMES` has several names,
  `MEGASCALE_NUM_SLICES` is more than one, or, if no names are set, Google's metadata server says so. The server is
  only asked on a machine that has TPU chips and libtpu;
- it is a pod of an indexed Kubernetes job, and the package kubernetes is installed.

JAX then takes the addresses from the same source. Otherwise nothing is started, and nothing is sent over the network.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import process_count, process_index, watch_others
from tfm_jax.runtime.command import set_up_logging

log = logging.getLogger(__name__)

PATIENCE = 300  # seconds within which all processes must arrive

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def join(coordinator: str = "", processes: str = "", process: str = "") -> None:
  """Joins the other processes of this run. Must be called before JAX uses a device.

  Afterwards, process 0 logs at level INFO, and the others only warnings. If all arguments are empty, the processes
  are found as described above.

  Args:
    coordinator: HOST:PORT of process 0, as the other processes reach it; the port must be free.
    processes: the number of processes, as text.
    process: the index of this process, as text.

  Raises:
    UserError: wrong arguments, or the processes did not find each other within `PATIENCE` seconds.
  """
  import jax

  from tfm_jax.runtime.devices import prepare_backends

  prepare_backends()
  flags = {"coordinator": coordinator, "processes": processes, "process": process}
  options: dict[str, Any]
  if any(flags.values()):
    host, port, count, number = _parse(flags)
    _meet(host, port, count, number)
    options = {"coordinator_address": coordinator, "num_processes": count, "process_id": number}
    # Otherwise JAX looks for a cluster if one of its arguments is missing.
    options["cluster_detection_method"] = "deactivate"
    if host in _LOOPBACK:  # by default the service listens on every interface
      options["coordinator_bind_address"] = coordinator
    origin = f"--coordinator={coordinator}"
  else:
    cluster = find_cluster(os.environ)
    if cluster is None:
      return
    origin, options = cluster
  try:
    jax.distributed.initialize(**options, initialization_timeout=PATIENCE)
  except Exception as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    advice = "" if coordinator else "; set the flags --coordinator=HOST:PORT --processes=N --process=I"
    raise UserError(f"{origin}: the processes of this run cannot be joined: {reason}{advice}") from error
  set_up_logging(process_index())
  watch_others()
  log.info("%d processes (%s)", process_count(), origin)


def _parse(flags: Mapping[str, str]) -> tuple[str, int, int, int]:
  """(host, port, number of processes, index of this one). Raises UserError."""
  for name, text in flags.items():
    if not text:
      raise UserError(f"--{name}=... is missing: --coordinator, --processes and --process go together")
  address = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\[\]/\s]+):(\d+)", flags["coordinator"])
  if address is None or not 0 < int(address[2]) < 1 << 16:
    raise UserError(f"--coordinator={flags['coordinator']} is not an address: write HOST:PORT, such as 10.0.0.1:8476")
  for name in ("processes", "process"):
    if not re.fullmatch(r"\d{1,6}", flags[name]):
      raise UserError(f"--{name}={flags[name]} is not a whole number")
  count, number = int(flags["processes"]), int(flags["process"])
  if number >= count:
    raise UserError(f"--process={number} is too large: {count} processes are numbered from 0 to {count - 1}")
  return address[1].strip("[]"), int(address[2]), count, number


# All processes first meet at the coordinator's address: if one were missing, JAX would abort with a stack trace.


def _meet(host: str, port: int, count: int, number: int) -> None:
  """Returns once all processes have reached process 0; UserError if that takes longer than `PATIENCE`."""
  if count > 1:
    deadline = time.monotonic() + PATIENCE
    if number:
      _report(host, port, {"processes": count, "process": number}, deadline)
    else:
      _wait_for_all(host, port, count, deadline)


def _report(host: str, port: int, identity: Mapping[str, int], deadline: float) -> None:
  """Sends the identity of this process to process 0, and waits for its answer."""
  failure = "no answer"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((host, port), timeout=left) as connection:
        connection.sendall(f"{json.dumps(identity)}\n".encode())
        with connection.makefile("r", encoding="utf-8") as lines:
          answer = lines.readline()
      if answer == "go\n":
        return
      if answer:
        raise UserError(answer.strip())
      failure = "it closed the connection"
    except OSError as error:
      failure = error.strerror or str(error) or failure
    time.sleep(min(0.2, max(left, 0)))
  raise UserError(
    f"process 0 was not reached at --coordinator={host}:{port} within {PATIENCE} s ({failure}): is it running, is that "
    f"its host, and is the port open?"
  )


def _wait_for_all(host: str, port: int, count: int, deadline: float) -> None:
  """Process 0 waits until each of the others has reported, and tells them to continue. Raises UserError."""
  waiting: dict[int, socket.socket] = {}
  failure = ""
  with contextlib.ExitStack() as stack:
    with _listen(host, port) as listener:
      while len(waiting) < count - 1 and not failure:
        listener.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
          connection = stack.enter_context(listener.accept()[0])
        except TimeoutError:
          missing = ", ".join(str(i) for i in range(1, count) if i not in waiting)
          failure = (
            f"of {count} processes, {missing} did not reach --coordinator={host}:{port} within {PATIENCE} s: "
            f"are they running, and is the port open?"
          )
          break
        identity = _read_report(connection)
        if identity is None:
          continue  # not one of our processes
        number = identity["process"]
        if identity["processes"] != count:
          failure = f"process {number} has --processes={identity['processes']}, process 0 --processes={count}"
          waiting[number] = connection
        elif number in waiting and not _closed(waiting[number]):
          failure = f"two processes have --process={number}"
          with contextlib.suppress(OSError):
            connection.sendall(f"{failure}\n".encode())
        else:
          waiting[number] = connection
    # The port is free again, for JAX.
    for connection in waiting.values():
      with contextlib.suppress(OSError):
        connection.sendall(f"{failure or 'go'}\n".encode())
  if failure:
    raise UserError(failure)


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
  """A listening socket on all interfaces, or on the loopback if the host is that. Raises UserError."""
  bound = host if host in _LOOPBACK else ""
  six = ":" in host or (not bound and socket.has_dualstack_ipv6())
  family = socket.AF_INET6 if six else socket.AF_INET
  try:
    listener = socket.create_server((bound, port), family=family, dualstack_ipv6=six and not bound)
  except OSError as error:
    raise UserError(f"cannot listen on port {port} of this host ({error.strerror}): choose another") from error
  with listener:
    yield listener


def _read_report(connection: socket.socket) -> dict[str, int] | None:
  """The identity of the process at the other end; None if it is not one of ours."""
  connection.settimeout(5.0)
  try:
    report = json.loads(connection.makefile("r", encoding="utf-8").readline(200))
    identity = {key: int(report[key]) for key in ("processes", "process")}
    return identity if 0 < identity["process"] < identity["processes"] else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _closed(connection: socket.socket) -> bool:
  """Whether a waiting process has closed its connection (it sends nothing while it waits)."""
  connection.setblocking(False)
  try:
    return connection.recv(1) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True


# Clusters.


def find_cluster(environment: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
  """(description, arguments of `jax.distributed.initialize`) of the cluster of this process; None if it is alone.

  Args:
    environment: environment variables after JAX was imported, which sets one if the machine has no TPU chips.
  """
  tasks = _number(environment, "OMPI_COMM_WORLD_SIZE")
  if tasks > 1:
    # Before version 5, the address of the launcher is in the environment; since then, JAX needs mpi4py.
    method = "ompi" if "OMPI_MCA_orte_hnp_uri" in environment else "mpi4py"
    return f"Open MPI, {tasks} processes", {"cluster_detection_method": method}
  tasks = _number(environment, "SLURM_STEP_NUM_TASKS")
  if tasks > 1 and all(name in environment for name in _SLURM):
    return f"Slurm step of {tasks} tasks", {"cluster_detection_method": "slurm"}
  if may_use_tpu():
    slices = _number(environment, "MEGASCALE_NUM_SLICES")
    names = _tpu_names(environment)
    if names is not None:
      return _tpu(len(names), slices, "gketpu")
    if "TPU_SKIP_MDS_QUERY" not in environment:  # JAX sets it on import if there are no chips
      hosts = [name for name in _metadata("worker-network-endpoints").split(",") if name]
      match = re.search(r"MEGASCALE_NUM_SLICES\W+(\d+)", _metadata("tpu-env"))
      return _tpu(len(hosts), max(slices, int(match[1]) if match else 1), "gcetpu")
  if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
    if importlib.util.find_spec("kubernetes") is not None:
      return "indexed Kubernetes job", {}
    log.warning("this pod of an indexed Kubernetes job does not join the others: the package kubernetes is missing")
  return None


def _number(environment: Mapping[str, str], name: str) -> int:
  """The value of a variable as a number; 0 if it is not set."""
  text = environment.get(name, "")
  return int(text) if text.isdecimal() else 0


def may_use_tpu() -> bool:
  """Whether JAX would use TPU chips if the machine has any."""
  import jax

  platforms = jax.config.jax_platforms or "tpu"  # type: ignore[attr-defined]
  return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def _tpu(hosts: int, slices: int, method: str) -> tuple[str, dict[str, str]] | None:
  """The result of `find_cluster` for TPU slices, with `hosts` hosts each."""
  if hosts <= 1 and slices <= 1:
    return None
  return f"TPU slices: {max(slices, 1)}, hosts of each: {hosts}", {"cluster_detection_method": method}


def _tpu_names(environment: Mapping[str, str]) -> list[str] | None:
  """The TPU hosts of this slice, from the variables that JAX reads, in its order; None if none is set."""
  path = environment.get("TPU_PROCESS_ADDRESSES_PATH")
  if path:
    try:
      with open(path, encoding="utf-8") as file:
        return file.read().strip().split(",")
    except OSError as error:
      raise UserError(f"TPU_PROCESS_ADDRESSES_PATH={path} cannot be read: {error.strerror}") from error
  text = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
  return None if text is None else text.split(",")


def _metadata(key: str) -> str:
  """An attribute of this machine from Google's metadata server; empty if it does not answer."""
  host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
  request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
      return str(answer.read().decode())
  except (OSError, ValueError):
    return ""
