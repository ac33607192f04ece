"""The tensors of a Hugging Face model directory: safetensors files, read in parts and written one tensor at a time.

A file is the length of its header in eight bytes, the header in JSON, and the tensors' bytes without gaps. Pickled
files are never read.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from tfm_jax.cache import atomic_directory
from tfm_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# In the order of the safetensors library, which writes wider dtypes first.
_DTYPES = {
  "U64": np.dtype(np.uint64),
  "I64": np.dtype(np.int64),
  "F64": np.dtype(np.float64),
  "C64": np.dtype(np.complex64),
  "F32": np.dtype(np.float32),
  "U32": np.dtype(np.uint32),
  "I32": np.dtype(np.int32),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
  "U16": np.dtype(np.uint16),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_BLOCK = 1 << 24  # bytes read at once when only columns are needed
_GIT_LFS = b"version https://git-lfs"


class _Stored(NamedTuple):
  """The place of a tensor in a file."""

  file: Path
  dtype: str  # as the file names it: "BF16"
  shape: tuple[int, ...]
  start: int  # offset of the tensor's first byte in the file
  nbytes: int


class TensorFiles:
  """The tensors of a model directory, from `model.safetensors` or from the shards that its index names.

  Opening reads and checks only the headers. A single file may have another name. Links are followed.

  Args:
    directory: a folder on a local disk; `~` is expanded.

  Raises:
    UserError: no such folder, no safetensors in it (pickled weights are not read), a damaged or malicious file, an
      index that does not match the shards, a missing shard.
  """

  def __init__(self, directory: epath.PathLike) -> None:
    self.directory = _local(directory, "--source").absolute()
    if not self.directory.is_dir():
      what = "is a file, not the folder of a model" if self.directory.exists() else "does not exist"
      raise UserError(f"{directory} {what}; a model of the hub is downloaded by: hf download NAME --local-dir=FOLDER")
    with _reading(self.directory):
      present = sorted(path.name for path in self.directory.iterdir())
    self._tensors: dict[str, _Stored] = {}
    if SINGLE not in present and INDEX in present:
      self._open_shards(present)
    else:
      self._tensors = _tensors_of(self.directory / _single(self.directory, present))

  def _open_shards(self, present: Sequence[str]) -> None:
    """Reads the index and the headers of the shards that it names."""
    index = self.directory / INDEX
    weight_map = _weight_map(index)
    for shard in sorted(set(weight_map.values())):
      # Checked before the name is used: it must not lead out of the folder.
      if shard in (".", "..") or "/" in shard or "\\" in shard:
        raise UserError(f"{index} names {shard!r}, which is no file of its folder; do not trust this model")
      if shard not in present:
        raise UserError(f"{index} names {shard!r}, which is missing; download that file too")
      for name, stored in _tensors_of(self.directory / shard).items():
        if name in self._tensors:
          both = f"{self._tensors[name].file} and {shard}"
          raise UserError(f"{both} both hold the tensor {name!r}; remove shards of another version, download anew")
        self._tensors[name] = stored
    for name, shard in weight_map.items():
      if name not in self._tensors or self._tensors[name].file.name != shard:
        raise UserError(f"{index} promises the tensor {name!r} in {shard}, which lacks it; download both anew")

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the tensors in the order of the files, in which reading is fastest."""
    return tuple(self._tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """The lengths of a tensor's axes; () for a scalar."""
    return self._tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    """A tensor's dtype. Weights are float64, float32, float16 or `ml_dtypes.bfloat16`; masks and ids are others.

    Raises:
      UserError: a dtype that only some accelerators have (float8 and narrower).
    """
    stored = self._tensors[name]
    if stored.dtype not in _DTYPES:
      raise UserError(
        f"{stored.file} holds the tensor {name!r} as {stored.dtype}, which is not supported: "
        "take a version of the model in float32, float16 or bfloat16"
      )
    return _DTYPES[stored.dtype]

  def nbytes(self, name: str) -> int:
    """The size of a tensor in its file."""
    return self._tensors[name].nbytes

  def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """Reads a tensor, or a part of it, into a new contiguous array of the file's dtype.

    Needs the memory of the array, plus 16 MB or one row if `index` slices more than the first axis. Unlike the library,
    it maps no part of the file, as mapped parts that were read would count as used memory.

    Args:
      name: one of `names`.
      index: a slice for each of the first axes, with step 1; None: the whole tensor.

    Raises:
      UserError: the file cannot be read or was cut since it was opened; a dtype as in `dtype`.
      ValueError: an index that does not fit the tensor.
    """
    stored, index = self._tensors[name], index or ()
    if len(index) > len(stored.shape) or any(part.step not in (None, 1) for part in index):
      raise ValueError(f"{index} does not index an array of shape {stored.shape} by slices of step 1")
    whole = (slice(None),) * (len(stored.shape) - len(index))
    ranges = [range(*part.indices(length)) for part, length in zip((*index, *whole), stored.shape, strict=True)]
    out = np.empty([len(indices) for indices in ranges], self.dtype(name))
    if out.size:
      with _reading(stored.file), stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start)
        if out.nbytes == stored.nbytes:
          _fill(out, file)
        else:
          _fill_part(out, file, stored, ranges)
    return out


def _fill_part(out: np.ndarray, file: FileIO, stored: _Stored, ranges: Sequence[range]) -> None:
  """Reads rows `ranges[0]`, counted from the current offset, and keeps the columns given by the other ranges."""
  row_bytes = stored.nbytes // stored.shape[0]
  file.seek(ranges[0].start * row_bytes, os.SEEK_CUR)
  if out.nbytes == len(out) * row_bytes:
    _fill(out, file)
    return
  columns = tuple(slice(indices.start, indices.stop) for indices in ranges[1:])
  block = np.empty((min(len(out), max(1, _BLOCK // row_bytes)), *stored.shape[1:]), out.dtype)
  for begin in range(0, len(out), len(block)):
    rows = out[begin : begin + len(block)]
    _fill(block[: len(rows)], file)
    rows[:] = block[(slice(len(rows)), *columns)]


def _fill(out: np.ndarray, file: FileIO) -> None:
  """Reads a contiguous array's bytes from the current offset. Raises OSError if the file ends before."""
  rest = _bytes(out)
  while len(rest):
    count = file.readinto(rest)  # at most 2 GiB a call on Linux
    if not count:
      raise OSError("it was truncated while being read")
    rest = rest[count:]


def _bytes(array: np.ndarray) -> memoryview:
  """The bytes of a contiguous array; a memoryview of bfloat16 itself is not possible."""
  return array.reshape(-1).view(np.uint8).data


# The files of a folder.


def _single(directory: Path, present: Sequence[str]) -> str:
  """The name of the only safetensors file. Raises UserError with advice if there is none or more than one."""
  files = [name for name in present if name.endswith(".safetensors")]
  if SINGLE in files:
    return SINGLE
  if len(files) > 1 or (files and "-of-" in files[0] and not files[0].endswith("-of-00001.safetensors")):
    raise UserError(f"{directory} has {files[0]} and no {INDEX} that says what belongs together; download that too")
  if files:
    return files[0]
  for name in present:
    if name.endswith((".bin", ".pt", ".pth", ".ckpt")):
      convert = "pickle, which can run code when it is read: load it with transformers and call save_pretrained"
    elif name.endswith((".h5", ".msgpack", ".ckpt.index")):
      convert = "not read: load it with transformers 4, from_tf=True or from_flax=True, and call save_pretrained"
    else:
      continue
    raise UserError(f"{directory / name} is {convert}, which writes {SINGLE}")
  raise UserError(f"{directory} has no {SINGLE}; name the folder that holds the model's weights")


def _weight_map(index: Path) -> dict[str, str]:
  """The index of a sharded model: tensor -> name of its file."""
  try:
    with _reading(index):
      content = json.loads(index.read_bytes(), object_pairs_hook=_once)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{index} is not a JSON file ({_line(error)}); download it again") from error
  weight_map = content.get("weight_map") if isinstance(content, dict) else None
  if not isinstance(weight_map, dict) or not weight_map or {type(file) for file in weight_map.values()} != {str}:
    raise UserError(f"{index} has no weight_map from tensors to files; download it again")
  return weight_map


def _tensors_of(path: Path) -> dict[str, _Stored]:
  """The tensors in the header of a file, in the order of their data, checked against the file's length."""
  try:
    with _reading(path), path.open("rb") as file:
      start = file.read(len(_GIT_LFS))
      if start == _GIT_LFS:
        raise UserError(f"{path} is git-lfs's pointer to the weights, not the weights; run: git lfs pull")
      # The library refuses files that are truncated, overlapping, out of bounds or not of the format.
      with safe_open(str(path), "numpy", backend="pread"):
        pass
      data = 8 + int.from_bytes(start[:8], "little")
      file.seek(8)
      header = json.loads(file.read(data - 8), object_pairs_hook=_once)  # the library does not return the offsets
      header.pop("__metadata__", None)
      tensors = {}
      for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if (
          len(shape) > 64 or math.prod(filter(None, shape)) >> 58
        ):  # without elements, such a shape passes the library's checks
          raise ValueError(f"no array can have the shape of {name!r}")
        tensors[name] = _Stored(path, entry["dtype"], shape, data + begin, end - begin)
      return tensors
  except (SafetensorError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is not a whole safetensors file ({_line(error)}); download or copy it again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of a JSON file. Raises ValueError for a repeated name, of which Python would silently take the last."""
  content = dict(pairs)
  if len(content) < len(pairs):
    raise ValueError("a name occurs twice")
  return content


def _line(error: BaseException) -> str:
  """An error's message in one printable line, as it may contain names from an untrusted file."""
  text = " ".join(str(error).removeprefix("Error while deserializing header: ").split())
  return "".join(character if character.isprintable() else "?" for character in text)[:200]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
  """Turns errors of reading a file into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}; is it complete, and may you read it?") from error


def _local(path: epath.PathLike, flag: str) -> Path:
  """A path on a local file system. Raises UserError for a URL."""
  if "://" in os.fspath(path):
    raise UserError(f"{flag}={os.fspath(path)}: only folders on a local disk are read and written; copy it")
  return Path(path).expanduser()


# Writing.


class NewTensor(NamedTuple):
  """A tensor to write."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]  # called once, when the tensor is written; only one array is in memory at a time

  @property
  def nbytes(self) -> int:
    """Its size in a file."""
    return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(directory: Path, tensors: Iterable[NewTensor], max_shard_bytes: int = 5 * 10**9) -> None:
  """Writes tensors in the format of transformers, with one of them in memory at a time.

  The file is `model.safetensors`, or `model-00001-of-0000N.safetensors` ... with `model.safetensors.index.json` if
  they do not fit into one. Shards are filled in the given order. Within a file, tensors are sorted by width of dtype,
  then by name, so that it equals what the safetensors library would write, byte for byte.

  Args:
    directory: an existing local folder, see `new_folder`.
    tensors: what to write; each name once.
    max_shard_bytes: largest size of a file; a larger tensor gets a file of its own.

  Raises:
    UserError: the disk is full or cannot be written to.
    ValueError: a repeated name, or an array that does not have the declared shape and dtype.
  """
  shards: list[list[NewTensor]] = [[]]
  filled = 0
  for tensor in tensors:
    if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(tensor)
    filled += tensor.nbytes
  every = [tensor for shard in shards for tensor in shard]
  if len({tensor.name for tensor in every}) < len(every):
    raise ValueError("a name occurs twice")
  weight_map: dict[str, str] = {}
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
    _write_file(directory / file, sorted(shard, key=lambda tensor: (list(_CODES).index(tensor.dtype), tensor.name)))
    weight_map |= {tensor.name: file for tensor in shard}
  if len(shards) > 1:
    sizes = {"total_parameters": sum(math.prod(tensor.shape) for tensor in every)}
    sizes["total_size"] = sum(tensor.nbytes for tensor in every)
    index = {"metadata": sizes, "weight_map": weight_map}
    with _writing(directory / INDEX):
      (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Sequence[NewTensor]) -> None:
  """Writes one file: the header, then the tensors."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
  end = 0
  for tensor in tensors:
    begin, end = end, end + tensor.nbytes
    header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
  with contextlib.ExitStack() as stack:
    with _writing(path):
      file = stack.enter_context(path.open("wb", buffering=0))
      _write(file, memoryview(len(text).to_bytes(8, "little") + text))
    for tensor in tensors:
      array = tensor.make()
      if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(f"{tensor.name} is {array.dtype}{array.shape}, not {tensor.dtype}{tensor.shape} as declared")
      with _writing(path):
        _write(file, _bytes(np.ascontiguousarray(array)))
      del array  # freed before the next one is computed


def _write(file: FileIO, data: memoryview) -> None:
  """Writes all bytes; on Linux, one call writes at most 2 GiB."""
  while len(data):
    data = data[file.write(data) :]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
  """Turns errors of writing into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def check_new_folder(out: epath.PathLike) -> Path:
  """The real path of a folder that does not exist or is empty. Raises UserError."""
  final = Path(os.path.realpath(_local(out, "--out")))
  with _writing(final):
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
      raise UserError(f"{out} exists and is not an empty folder; choose another --out or remove it")
  return final


@contextlib.contextmanager
def new_folder(out: epath.PathLike) -> Iterator[Path]:
  """A folder to write a model into, which is renamed to `out` when the block ends without an error.

  Until then it has a hidden name beside `out`. An error removes it; what a killed process left is removed by the next
  export. So `out` is never incomplete.

  Raises:
    UserError: `out` is a file or a folder that is not empty, or cannot be created.
  """
  final = check_new_folder(out)
  with _writing(final):
    final.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(final.parent, os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  with atomic_directory(final) as temporary:
    inode = temporary.stat().st_ino
    yield temporary
  if final.stat().st_ino != inode:  # a mount point, or another process created it: theirs stays, ours is removed
    raise UserError(f"{out} could not be replaced; choose an --out that does not exist")
