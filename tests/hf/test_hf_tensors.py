"""Files of tensors: what the library and transformers read and write, parts, memory. Damage is in test_hf_damage.py."""

import io
import json
import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from tests.support.peers import peer_python
from tests.support.tensor_files import FLOAT, GOOD, entry, file, opened
from tfm_jax.errors import UserError
from tfm_jax.hf import tensors
from tfm_jax.hf.tensors import INDEX, SINGLE, NewTensor, TensorFiles, new_folder, write_tensors

DTYPES = [
  *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.complex64, np.bool_),
  *(np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8),
]


def arrays() -> dict[str, np.ndarray]:
  """A tensor of each dtype, a scalar, some without elements, and names that sort otherwise than they were made."""
  rng = np.random.default_rng(0)
  made = {f"w.{np.dtype(dtype).name}": rng.uniform(0, 9, (3, 5)).astype(dtype) for dtype in DTYPES}
  shapes = {"scalar": (), "none": (0,), "none.wide": (4, 0, 3), "h.10.é": (7,), "h.2": (2, 3, 4), 'quote"\n': (1, 1)}
  return made | {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def new(made: dict[str, np.ndarray]) -> list[NewTensor]:
  return [NewTensor(name, array.shape, array.dtype, lambda array=array: array) for name, array in made.items()]


def assert_holds(files: TensorFiles, expected: dict[str, np.ndarray]) -> None:
  assert sorted(files.names) == sorted(expected)
  for name, array in expected.items():
    read = files.read(name)
    assert (files.shape(name), files.dtype(name), files.nbytes(name)) == (array.shape, array.dtype, array.nbytes)
    assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes()
    assert read.flags.owndata and read.flags.writeable and read.flags.c_contiguous


# Reading and writing


def test_what_the_library_writes_is_read(tmp_path):
  safetensors.numpy.save_file(arrays(), tmp_path / SINGLE)
  assert_holds(TensorFiles(tmp_path), arrays())


def test_a_written_file_is_the_librarys_to_the_byte(tmp_path):
  write_tensors(tmp_path, new(arrays()))
  safetensors.numpy.save_file(arrays(), tmp_path / "expected", metadata={"format": "pt"})
  assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("max_shard_bytes", [1, 60, 200, 10**9])
def test_shards(tmp_path, max_shard_bytes):
  write_tensors(tmp_path, new(arrays()), max_shard_bytes)
  assert_holds(TensorFiles(tmp_path), arrays())
  files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  if max_shard_bytes == 10**9:
    assert files == [SINGLE] and not (tmp_path / INDEX).exists()
    return
  assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
  index = json.loads((tmp_path / INDEX).read_text())
  assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays().values())
  held = {}
  for name in files:
    shard = safetensors.numpy.load_file(tmp_path / name)
    assert sum(array.nbytes for array in shard.values()) <= max(max_shard_bytes, 120) or len(shard) == 1
    held |= dict.fromkeys(shard, name)
  assert held == index["weight_map"]


def test_names_come_in_the_order_of_the_file(tmp_path):
  data = {"z": entry("F32", [1], 0, 4), "a": entry("F32", [1], 8, 12), "m": entry("F32", [1], 4, 8)}
  assert opened(tmp_path, model=file(data, bytes(12))).names == ("z", "m", "a")


def test_one_file_of_another_name_serves(tmp_path):
  assert opened(tmp_path, model__fp16__safetensors=GOOD).names == ("a", "b")


def test_links_are_followed(tmp_path):
  (tmp_path / "blobs").mkdir()
  (tmp_path / "snapshot").mkdir()
  (tmp_path / "blobs" / "5ha").write_bytes(GOOD)
  (tmp_path / "snapshot" / SINGLE).symlink_to("../blobs/5ha")
  assert TensorFiles(tmp_path / "snapshot").read("b").tobytes() == bytes(range(16, 22))


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
  folder, array = tmp_path_factory.mktemp("cube"), np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
  safetensors.numpy.save_file({"before": np.zeros(3, np.int16), "cube": array}, folder / SINGLE)
  return TensorFiles(folder), array


bounds = st.none() | st.integers(-8, 8)


@given(index=st.lists(st.builds(slice, bounds, bounds, st.sampled_from([None, 1])), max_size=3).map(tuple))
@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_a_part_is_numpys_slice(cube, index, block):
  files, array = cube
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("tfm_jax.hf.tensors._BLOCK", block)  # bytes: less than a row, two rows, all
    part = files.read("cube", index)
  np.testing.assert_array_equal(part, array[index])
  assert part.flags.owndata and part.flags.c_contiguous


@pytest.mark.parametrize("index", [(slice(0, 6, 2),), (slice(None, None, -1),), (slice(None),) * 4])
def test_an_index_that_does_not_fit(cube, index):
  with pytest.raises(ValueError, match="slices of step 1"):
    cube[0].read("cube", index)


@pytest.mark.parametrize("index", [None, (), (slice(5, 9),)])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, index):
  files = opened(tmp_path, model=file({"a": entry("F32", [9, 9], 0, 324)}, bytes(324)))
  os.truncate(tmp_path / SINGLE, 200)
  with pytest.raises(UserError, match=f"{SINGLE}: it was truncated"):
    files.read("a", index)


def test_a_call_may_move_a_part_of_the_bytes(tmp_path):  # Linux stops at 2 GiB, and embeddings are larger

  class Slow(io.FileIO):
    def readinto(self, buffer):
      return super().readinto(buffer[:5])

    def write(self, data):
      return super().write(data[:5])

  array, read = np.arange(9, dtype=np.float32), np.empty(9, np.float32)
  with Slow(tmp_path / "slow", "wb") as slow:
    tensors._write(slow, tensors._bytes(array))
  with Slow(tmp_path / "slow") as slow:
    tensors._fill(read, slow)
  np.testing.assert_array_equal(read, array)


def test_a_file_that_vanishes(tmp_path):
  files = opened(tmp_path, model=GOOD)
  (tmp_path / SINGLE).unlink()
  with pytest.raises(UserError, match="No such file"):
    files.read("a")


def test_float8_is_refused_when_it_is_asked_for(tmp_path):
  files = opened(tmp_path, model=file({"a": FLOAT, "q": entry("F8_E4M3", [4], 4, 8)}, bytes(8)))
  assert files.names == ("a", "q") and files.shape("q") == (4,) and files.read("a") == 0
  for method in (files.dtype, files.read):
    with pytest.raises(UserError, match="'q' as F8_E4M3, which is not supported: take a version"):
      method("q")


def test_writing_asks_for_one_tensor_at_a_time(tmp_path):
  alive = []

  class Counted(np.ndarray):
    def __del__(self):
      alive.remove(id(self))

  def make():
    array = np.ones((4, 4), np.float32).view(Counted)
    alive.append(id(array))
    assert len(alive) == 1
    return array

  write_tensors(tmp_path, [NewTensor(str(n), (4, 4), np.dtype(np.float32), make) for n in range(9)], 200)
  assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_transposed_array_is_written_in_its_own_order(tmp_path):
  array = np.arange(6, dtype=np.float32).reshape(2, 3).T
  write_tensors(tmp_path, new({"t": array}))
  np.testing.assert_array_equal(TensorFiles(tmp_path).read("t"), array)


def test_a_promise_that_is_not_kept(tmp_path):
  wrong = [NewTensor("t", (2,), np.dtype(np.float32), lambda: np.zeros(2))]
  with pytest.raises(ValueError, match="t is float64"):
    write_tensors(tmp_path, wrong)
  with pytest.raises(ValueError, match="twice"):
    write_tensors(tmp_path, wrong * 2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_in_a_line(tmp_path):
  (tmp_path / SINGLE).symlink_to("/dev/full")
  with pytest.raises(UserError, match=r"cannot write .*: No space left on device; choose another --out"):
    write_tensors(tmp_path, new(arrays()))


# Memory: in a process of its own, as the peak of this one is that of the tests before.

TENSOR_MB, TENSORS = 32, 12
PEAK = f"""
import pathlib, resource, sys
import numpy as np
from tfm_jax.hf.tensors import NewTensor, TensorFiles, write_tensors

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)

shape, what, folder = ({TENSOR_MB} * 256, 1024), sys.argv[1], pathlib.Path(sys.argv[2])
make = lambda: np.ones(shape, np.float32)
write = lambda limit: write_tensors(
  folder, [NewTensor(f"t{{n}}", shape, np.dtype(np.float32), make) for n in range({TENSORS})], limit)
if what == "open":
  TensorFiles(folder)
before = peak()
if what.startswith("write"):
  write(10**12 if what == "write" else 10**8)
else:
  files = TensorFiles(folder)
  for name in files.names:
    if what == "read":
      assert files.read(name).sum() == np.prod(shape)
    elif what == "rows":
      assert files.read(name, (slice(0, 8),)).sum() == 8 * 1024
    elif what == "columns":
      assert files.read(name, (slice(None), slice(0, 8))).sum() == 8 * shape[0]
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_memory_is_that_of_one_tensor(tmp_path, kind):
  def added(what: str) -> float:
    command = [sys.executable, "-c", PEAK, what, str(tmp_path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

  assert added("write" if kind == "single" else "write sharded") < 1.5 * TENSOR_MB
  assert len(list(tmp_path.glob("*.safetensors"))) == (1 if kind == "single" else 6)
  assert added("read") < 1.5 * TENSOR_MB
  assert added("rows") < 0.25 * TENSOR_MB
  assert added("columns") < 1.0 * TENSOR_MB
  assert added("open") < 0.25 * TENSOR_MB


# A folder that is there whole or not at all


def test_the_target_appears_when_it_is_complete(tmp_path):
  out = tmp_path / "new" / "model"
  with new_folder(out) as folder:
    write_tensors(folder, new(arrays()))
    assert not out.exists() and folder.parent == out.parent
  assert_holds(TensorFiles(out), arrays())
  assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_nothing(tmp_path, there):
  out = tmp_path / "model"
  if there:
    out.mkdir()
  with pytest.raises(KeyError), new_folder(out) as folder:
    (folder / SINGLE).write_bytes(GOOD)
    raise KeyError
  assert list(tmp_path.iterdir()) == [out] * there and not (there and list(out.iterdir()))


def test_a_kill_leaves_nothing_under_the_name(tmp_path):
  out = tmp_path / "model"
  code = (
    "import os, signal, sys\nfrom tfm_jax.hf.tensors import new_folder\n"
    "with new_folder(sys.argv[1]) as folder:\n"
    "  (folder / 'model.safetensors').write_bytes(b'half')\n  os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  assert subprocess.run([sys.executable, "-c", code, str(out)]).returncode == -signal.SIGKILL
  assert not out.exists() and len(list(tmp_path.iterdir())) == 1
  with new_folder(out) as folder:  # sweeps
    (folder / SINGLE).write_bytes(GOOD)
  assert list(tmp_path.iterdir()) == [out] and TensorFiles(out).names == ("a", "b")


def test_an_empty_folder_is_replaced_and_a_full_one_is_not(tmp_path):
  out = tmp_path / "model"
  out.mkdir()
  with new_folder(out) as folder:
    (folder / SINGLE).write_bytes(GOOD)
  for taken in (out, out / SINGLE):
    with pytest.raises(UserError, match="exists and is not an empty folder; choose another --out"), new_folder(taken):
      raise AssertionError
  assert (out / SINGLE).read_bytes() == GOOD


def test_a_target_that_is_made_meanwhile_stays(tmp_path):
  out = tmp_path / "model"
  with pytest.raises(UserError, match="could not be replaced; choose an --out"), new_folder(out):
    out.mkdir()
    (out / "mine").write_text("")
  assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine"]


def test_a_target_where_nothing_can_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(UserError, match=r"cannot write .*: File exists; choose another --out"),
    new_folder(tmp_path / "file" / "model"),
  ):
    raise AssertionError
  with pytest.raises(UserError, match="only folders on a local disk"), new_folder("gs://bucket/model"):
    raise AssertionError


# Other implementations

PEER = """
import sys
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

mode, folder = sys.argv[1:]
if mode == "make":
  torch.manual_seed(0)
  config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
  model = GPT2LMHeadModel(config)
  model.save_pretrained(folder + "/whole")
  model.save_pretrained(folder + "/sharded", max_shard_size="40KB")
  model.to(torch.bfloat16).save_pretrained(folder + "/bfloat16")
else:
  want = load_file(folder + "/whole/model.safetensors")
  for written in ("written", "written_sharded"):
    model, info = GPT2LMHeadModel.from_pretrained(f"{folder}/{written}", output_loading_info=True)
    assert not any(info.values()), info
    have = model.state_dict()
    assert all(torch.equal(have[name], want[name]) for name in want)
  want = load_file(folder + "/bfloat16/model.safetensors")
  have = load_file(folder + "/written_bfloat16/model.safetensors")
  assert have.keys() == want.keys() and all(torch.equal(have[name], want[name]) for name in want)
"""


@pytest.mark.peers
@pytest.mark.skipif(peer_python() is None, reason="TFM_PEERS_PYTHON names no interpreter with torch and transformers")
def test_transformers_reads_what_is_written_and_the_reverse(tmp_path):
  def peer(mode: str) -> None:
    done = subprocess.run([peer_python(), "-c", PEER, mode, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

  peer("make")
  whole, sharded = TensorFiles(tmp_path / "whole"), TensorFiles(tmp_path / "sharded")
  assert_holds(sharded, {name: whole.read(name) for name in whole.names})
  for source, out, limit in (("whole", "", 10**9), ("sharded", "_sharded", 40_000), ("bfloat16", "_bfloat16", 10**9)):
    files = TensorFiles(tmp_path / source)
    with new_folder(tmp_path / f"written{out}") as folder:
      copies = [
        NewTensor(name, files.shape(name), files.dtype(name), lambda files=files, name=name: files.read(name))
        for name in sorted(files.names)
      ]
      write_tensors(folder, copies, limit)
      (folder / "config.json").write_bytes((tmp_path / source / "config.json").read_bytes())
    shards = {path.name for path in (tmp_path / source).glob("*.safetensors")}
    assert {path.name for path in (tmp_path / f"written{out}").glob("*.safetensors")} == shards or source == "sharded"
  assert (tmp_path / "written" / SINGLE).read_bytes() == (tmp_path / "whole" / SINGLE).read_bytes()
  peer("check")
