"""JAX's backends: without TPU chips the TPU library, which is there for forecasts, is not started and says nothing."""

import os
import subprocess
import sys

import pytest
from launching import ROOT

from tfm_jax.sharding import placement

CODE = """
import tfm_jax.sharding.placement, jax
print(jax.devices()[0].platform, "libtpu.so" in open("/proc/self/maps").read())
"""


def test_no_word_of_the_tpu_library():
  hidden = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY")  # JAX sets the second itself, in this process as in the other
  env = {name: value for name, value in os.environ.items() if name not in hidden}
  env["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # it is silent where another process has its lock
  done = subprocess.run([sys.executable, "-c", CODE], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  assert not [line for line in done.stderr.splitlines() if "tpu" in line.lower()], done.stderr
  platform, loaded = done.stdout.split()
  assert loaded == str(platform == "tpu")


@pytest.mark.parametrize(
  ("variables", "files", "replaced"),
  [
    ({"TPU_SKIP_MDS_QUERY": "1"}, [], True),
    ({}, [], False),  # JAX saw chips
    ({"TPU_SKIP_MDS_QUERY": "1"}, ["/dev/accel0"], False),
    ({"TPU_SKIP_MDS_QUERY": "1"}, ["/dev/vfio/0"], False),
    ({"TPU_SKIP_MDS_QUERY": "1", "JAX_FORCE_TPU_INIT": "1"}, [], False),
  ],
)
def test_where_there_may_be_chips_nothing_is_changed(variables, files, replaced, monkeypatch):
  for name in ("TPU_SKIP_MDS_QUERY", "JAX_FORCE_TPU_INIT"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  registered = []
  monkeypatch.setattr(placement.glob, "glob", lambda pattern: [f for f in files if f.startswith(pattern.rstrip("*"))])
  monkeypatch.setattr(placement, "register_backend_factory", lambda name, *_, **__: registered.append(name))
  placement._leave_the_tpu_library_alone()
  assert registered == ["tpu"] * replaced


def test_who_asks_for_a_tpu_is_told():
  code = "import tfm_jax.sharding.placement, jax; jax.devices()"
  env = os.environ | {"JAX_PLATFORMS": "tpu"}
  done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  if done.returncode:  # there is none
    assert "this machine has no TPU chips" in done.stderr.splitlines()[-1]
