"""How the processes of a run find each other: flags, the meeting at the coordinator's address, clusters."""

import contextlib
import http.server
import re
import socket
import threading
from typing import Any

import pytest

from tests.support.launching import free_port, train
from tfm_jax.errors import UserError
from tfm_jax.runtime import processes


@pytest.mark.parametrize(
  ("flags", "named"),
  [
    (["--processes=2"], "--coordinator=... is missing"),
    (["--coordinator=127.0.0.1:8476", "--process=0"], "--processes=... is missing"),
    (["--coordinator=127.0.0.1", "--processes=2", "--process=0"], "write HOST:PORT"),
    (["--coordinator=127.0.0.1:70000", "--processes=2", "--process=0"], "write HOST:PORT"),
    (["--coordinator=127.0.0.1:8476", "--processes=2", "--process=2"], "from 0 to 1"),
    (["--coordinator=127.0.0.1:8476", "--processes=two", "--process=0"], "not a whole number"),
  ],
)
def test_wrong_flags(flags, named):
  with pytest.raises(UserError, match=re.escape(named)):
    processes.join(**dict(flag[2:].split("=", 1) for flag in flags))


def test_the_command_prints_such_an_error_in_one_line(tmp_path):
  done = train("--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", "--processes=2")
  assert done.returncode == 2
  assert re.fullmatch(r"error: --coordinator=\.\.\. is missing.*\n", done.stderr)


def meeting(*identities: tuple[int, int]) -> list[str]:
  """Processes (index, count) meet at one port, in threads. Returns the error of each, or ""."""
  port = free_port()
  errors = [""] * len(identities)

  def meet(place: int, number: int, count: int) -> None:
    try:
      processes._meet("127.0.0.1", port, count, number)
    except UserError as error:
      errors[place] = str(error)

  threads = [threading.Thread(target=meet, args=(place, *identity)) for place, identity in enumerate(identities)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  return errors


def test_processes_meet():
  assert meeting((0, 3), (1, 3), (2, 3)) == ["", "", ""]


def test_a_missing_process_is_named(monkeypatch):
  monkeypatch.setattr(processes, "PATIENCE", 1)
  first, third = meeting((0, 4), (2, 4))
  assert re.match(r"of 4 processes, 1, 3 did not reach --coordinator=127\.0\.0\.1:\d+ within 1 s", first)
  assert third in (first, "") or "was not reached" in third


def test_no_process_at_the_coordinator(monkeypatch):
  monkeypatch.setattr(processes, "PATIENCE", 0.5)
  (message,) = meeting((1, 2))
  assert re.match(r"process 0 was not reached at --coordinator=127\.0\.0\.1:\d+ within 0\.5 s \(.*refused\)", message)


def test_contradicting_flags(monkeypatch):
  monkeypatch.setattr(processes, "PATIENCE", 5)
  messages = meeting((0, 2), (1, 3))
  assert messages == ["process 1 has --processes=3, process 0 --processes=2"] * 2
  assert set(meeting((0, 3), (1, 3), (1, 3))) == {"two processes have --process=1"}


def test_a_port_in_use():
  with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UserError, match="Address already in use"):
    processes._meet("127.0.0.1", server.getsockname()[1], 2, 0)


def test_a_foreign_connection_is_ignored():
  port = free_port()
  waiting = threading.Thread(target=processes._meet, args=("127.0.0.1", port, 2, 0))
  waiting.start()
  for message in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\n", b'{"process": 7, "processes": 2}\n', b""):
    while waiting.is_alive():
      with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(message)
        break
  assert waiting.is_alive()
  processes._meet("127.0.0.1", port, 2, 1)
  waiting.join(60)
  assert not waiting.is_alive()


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
SLURM |= {"SLURM_LOCALID": "0"}
NO_CHIPS = {"TPU_SKIP_MDS_QUERY": "1"}


@pytest.mark.parametrize(
  ("variables", "method"),
  [
    ({}, None),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, "slurm"),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # the shell or the notebook of an allocation of four tasks
    ({key: value for key, value in SLURM.items() if "STEP" not in key}, None),  # a batch script without srun
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, "ompi"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi4py"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
  ],
)
def test_clusters_by_their_variables(variables, method, monkeypatch):
  """On a machine without chips, where nothing is sent over the network."""
  monkeypatch.setattr(processes, "may_use_tpu", lambda: True)
  monkeypatch.setattr(processes, "_metadata", lambda key: pytest.fail("the network was used"))
  cluster = processes.find_cluster(NO_CHIPS | variables)
  assert (cluster and cluster[1].get("cluster_detection_method")) == method


@pytest.mark.parametrize(
  ("variables", "metadata", "method"),
  [
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}, None),
    ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, {}, "gketpu"),
    ({"TPU_WORKER_HOSTNAMES": "t-0", "MEGASCALE_NUM_SLICES": "2"}, {}, "gketpu"),
    ({}, {"worker-network-endpoints": "a:b:10.0.0.1"}, None),
    ({}, {"worker-network-endpoints": "a:b:10.0.0.1,c:d:10.0.0.2"}, "gcetpu"),
    ({}, {"worker-network-endpoints": "a:b:10.0.0.1", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n"}, "gcetpu"),
    ({"TPU_SKIP_MDS_QUERY": "1"}, {"worker-network-endpoints": "a:b:10.0.0.1,c:d:10.0.0.2"}, None),
    ({}, {}, None),
  ],
)
def test_tpu_hosts(variables, metadata, method, monkeypatch):
  """A machine with libtpu and, unless TPU_SKIP_MDS_QUERY is set, chips; a local server replaces Google's."""

  class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
      known = metadata.get(self.path.rpartition("/")[2]) if self.headers["Metadata-Flavor"] == "Google" else None
      self.send_response(404 if known is None else 200)
      self.end_headers()
      self.wfile.write((known or "").encode())

    def log_message(self, *_: Any) -> None:
      pass

  monkeypatch.setattr(processes, "may_use_tpu", lambda: True)
  with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    try:
      cluster = processes.find_cluster(variables)
    finally:
      server.shutdown()
      thread.join()
  assert (cluster and cluster[1].get("cluster_detection_method")) == method
