"""Safetensors files and model folders, right and wrong, for the tests of what reads them."""

import json
import struct
from pathlib import Path

import pytest

from tfm_jax.errors import UserError
from tfm_jax.hf.tensors import INDEX, SINGLE, TensorFiles


def file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
  """A safetensors file, right or not."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FLOAT = entry("F32", [1], 0, 4)
GOOD = file({"a": entry("F32", [2, 2], 0, 16), "b": entry("BF16", [3], 16, 22)}, bytes(range(22)))


def opened(folder: Path, **contents: bytes | str) -> TensorFiles:
  """The tensors of a folder with these files: model=, index=, or another name with its dots as __."""
  for name, content in contents.items():
    known = {"model": SINGLE, "index": INDEX}
    path = folder / known.get(name, name.replace("__", "."))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return TensorFiles(folder)


def assert_refused(pattern: str, folder: Path, **contents: bytes | str) -> None:
  """One line that names a file of the folder and says what the pattern says."""
  with pytest.raises(UserError, match=pattern) as error:
    opened(folder, **contents)
  assert "\n" not in str(error.value) and str(folder) in str(error.value)
