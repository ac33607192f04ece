"""What is no model, or a damaged or crafted one, is refused in one line that names the file and says what to do."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tensor_files import FLOAT, GOOD, assert_refused, entry, file, opened
from tfm_jax.errors import UserError
from tfm_jax.hf.tensors import INDEX, SINGLE, TensorFiles

# What is no model


def test_no_folder(tmp_path):
  assert_refused("does not exist; a model of the hub is downloaded by: hf download", tmp_path / "gone")
  (tmp_path / SINGLE).write_bytes(GOOD)
  assert_refused("is a file, not the folder", tmp_path / SINGLE)
  with pytest.raises(UserError, match="gs://bucket/model: only folders on a local disk"):
    TensorFiles("gs://bucket/model")


PICKLES = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt", "model.ckpt"]


@pytest.mark.parametrize("name", PICKLES)
def test_pickle_is_not_read(tmp_path, name):
  assert_refused(
    f"{name} is pickle, which can run code .* save_pretrained, which writes {SINGLE}",
    tmp_path,
    **{name.replace(".", "__"): b"cos\nsystem\n(S'touch owned'\ntR.", "config__json": b"{}"},
  )


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.ckpt.index"])
def test_other_forms_are_not_read(tmp_path, name):
  assert_refused(f"{name} is not read: load it with transformers 4", tmp_path, **{name.replace(".", "__"): b"x"})


def test_no_weights_at_all(tmp_path):
  assert_refused(f"has no {SINGLE}; name the folder", tmp_path, config__json=b"{}")


def test_shards_without_an_index(tmp_path):
  names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
  (tmp_path / names[0]).write_bytes(GOOD)
  assert_refused(f"{names[0]} and no {INDEX}", tmp_path)
  (tmp_path / names[1]).write_bytes(GOOD)
  assert_refused(f"{names[0]} and no {INDEX}", tmp_path)
  (tmp_path / names[0]).unlink()
  (tmp_path / names[1]).rename(tmp_path / "model-00001-of-00001.safetensors")
  assert TensorFiles(tmp_path).names == ("a", "b")


def test_an_unpulled_git_lfs_file(tmp_path):
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"
  assert_refused("is git-lfs's pointer to the weights, not the weights; run: git lfs pull", tmp_path, model=pointer)


def test_a_link_to_nothing(tmp_path):
  (tmp_path / SINGLE).symlink_to("../blobs/gone")
  assert_refused("cannot read .*: No such file", tmp_path)


def test_a_folder_in_place_of_the_file(tmp_path):
  (tmp_path / SINGLE).mkdir()
  assert_refused("cannot read", tmp_path)


# Damaged and crafted files

TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}'
CRAFTED = {
  "empty": (b"", "header too small"),
  "cut": (GOOD[:-1], "not fully covered"),
  "cut header": (GOOD[:40], "header length"),
  "too long": (GOOD + b"\0", "not fully covered"),
  "a web page": (b"<!DOCTYPE html><html>Not Found</html>", "header too large"),
  "huge header": (file({}, length=2**63), "header too large"),
  "largest header": (file({}, length=2**64 - 1), "header too large"),
  "99 MB header": (file({}, length=99_000_000), "header length"),
  "not JSON": (file(b"not JSON"), "JSON"),
  "not UTF-8": (file(b'{"\xff":1}'), "UTF-8"),
  "a list": (file([]), "JSON"),
  "deep": (file(b"[" * 100_000), "JSON"),
  "deep, where none looks": (
    file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 9999 + b"]" * 9999 + b"}}", bytes(4)),
    "JSON",
  ),
  "a name twice": (file(TWICE, bytes(4)), "a name occurs twice"),
  "overlapping": (file({"a": FLOAT, "b": FLOAT}, bytes(4)), "invalid offset"),
  "a gap": (file({"a": entry("F32", [1], 4, 8)}, bytes(8)), "invalid offset"),
  "out of bounds": (file({"a": entry("F32", [2], 0, 8)}, bytes(4)), "not fully covered"),
  "backwards": (file({"a": entry("F32", [1], 4, 0)}, bytes(4)), "invalid"),
  "shape and size": (file({"a": entry("F32", [2], 0, 4)}, bytes(4)), "invalid shape"),
  "dtype and size": (file({"a": entry("F64", [1], 0, 4)}, bytes(4)), "invalid shape"),
  "overflowing shape": (file({"a": entry("F32", [2**40, 2**40], 0, 4)}, bytes(4)), "overflow"),
  "negative shape": (file({"a": entry("F32", [-1], 0, 4)}, bytes(4)), "JSON"),
  "negative offset": (file({"a": entry("F32", [1], -4, 0)}, bytes(4)), "JSON"),
  "broken shape": (file({"a": FLOAT | {"shape": [1.0]}}, bytes(4)), "JSON"),
  "no dtype": (file({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "missing field"),
  "unknown dtype": (file({"a\n": entry("F99", [1], 0, 4)}, bytes(4)), "unknown variant `F99`"),
  "a control character": (file({"a\x1b[2J\nb": entry("F32", [1], 4, 8)}, bytes(8)), r"tensor `a\?\[2J b`"),
  "nothing, too wide": (file({"a\n": entry("F32", [0, 2**40, 2**40], 0, 0)}), r"no array can have the shape of 'a\\n'"),
  "too many axes": (file({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4)), "no array can have the shape of 'a'"),
  "metadata": (file({"__metadata__": {"format": 1}}), "JSON"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_file(tmp_path, case):
  content, pattern = CRAFTED[case]
  assert_refused(
    f"{SINGLE} is not a whole safetensors file .*{pattern}.*; download or copy it again", tmp_path, model=content
  )


# Indices

SHARDS = {"s1__safetensors": file({"a": FLOAT}, bytes(4)), "s2__safetensors": file({"b": FLOAT}, bytes(4))}
RIGHT = {"a": "s1.safetensors", "b": "s2.safetensors"}


def test_an_index(tmp_path):
  files = opened(tmp_path, index=json.dumps({"weight_map": RIGHT}), **SHARDS)
  assert files.names == ("a", "b") and files.read("b") == 0


def test_a_single_file_goes_before_an_index(tmp_path):
  assert opened(tmp_path, index="old", model=GOOD).names == ("a", "b")


OUTSIDE = [
  "../s1.safetensors",
  "/etc/passwd",
  "sub/s1.safetensors",
  "..",
  ".",
  "..\\s1.safetensors",
  "C:\\s1.safetensors",
]
INDICES = {
  "not JSON": ("{", "is not a JSON file"),
  "not UTF-8": (b'"\xff"', "is not a JSON file"),
  "empty": ("", "is not a JSON file"),
  "deep": ("[" * 100_000, "is not a JSON file"),
  "a long number": ("[" + "1" * 9999 + "]", "is not a JSON file"),
  "a name twice": ('{"weight_map": {"a": "s1.safetensors", "a": "s2.safetensors"}}', "a name occurs twice"),
  "a list": ("[]", "has no weight_map"),
  "no map": ("{}", "has no weight_map"),
  "an empty map": ('{"weight_map": {}}', "has no weight_map"),
  "a list of files": ('{"weight_map": ["s1.safetensors"]}', "has no weight_map"),
  "no name": ('{"weight_map": {"a": null}}', "has no weight_map"),
  "another form": ('{"weight_map": {"a": {"file": "s1.safetensors"}}}', "has no weight_map"),
  "missing": (json.dumps({"weight_map": RIGHT | {"c": "s3.safetensors"}}), "'s3.safetensors', which is missing"),
  "nul": (json.dumps({"weight_map": {"a": "s1\0"}}), "missing"),
  "surrogate": ('{"weight_map": {"a": "\\ud800\\n"}}', "missing"),
  "empty name": ('{"weight_map": {"a": ""}}', "missing"),
  "no such tensor": (json.dumps({"weight_map": RIGHT | {"c\n": "s1.safetensors"}}), r"promises the tensor 'c\\n'"),
  "another shard": (json.dumps({"weight_map": dict(zip("ba", RIGHT.values(), strict=True))}), "promises the tensor"),
  **{name: (json.dumps({"weight_map": RIGHT | {"c": name}}), "is no file of its folder") for name in OUTSIDE},
}


@pytest.mark.parametrize("case", INDICES)
def test_a_crafted_index(tmp_path, case):
  content, pattern = INDICES[case]
  assert_refused(f"{INDEX} .*{pattern}", tmp_path, index=content, **SHARDS)


def test_a_tensor_in_two_shards(tmp_path):
  both = file({"a": FLOAT, "b": entry("F32", [1], 4, 8)}, bytes(8))
  index = json.dumps({"weight_map": RIGHT})
  assert_refused(
    "s1.safetensors and s2.safetensors both hold the tensor 'a'",
    tmp_path,
    index=index,
    **SHARDS | {"s2__safetensors": both},
  )


def test_a_damaged_shard_is_named(tmp_path):
  damaged = SHARDS | {"s2__safetensors": SHARDS["s2__safetensors"][:-1]}
  assert_refused("s2.safetensors is not a whole", tmp_path, index=json.dumps({"weight_map": RIGHT}), **damaged)


# Whatever stands in the files: a model or a line. Sizes are bounded by the file's, so memory is too.

edits = st.lists(
  st.tuples(st.integers(0, 10**6), st.integers(0, 255) | st.sampled_from(list(b'"{}[]:,-.e0\0\n'))),
  min_size=1,
  max_size=4,
)


def damaged(content: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
  result = bytearray(content)
  for place, value in changes:
    result[place % len(result)] = value
  return bytes(result[:cut])


def read_all(folder: Path) -> None:
  """A model or a UserError of one line, and arrays no larger than the files."""
  try:
    files = TensorFiles(folder)
    total = sum(files.read(name).nbytes for name in files.names)
  except UserError as error:
    assert len(str(error).splitlines()) == 1
    str(error).encode()
  else:
    assert total <= sum(path.stat().st_size for path in folder.iterdir())


@settings(max_examples=400, deadline=5000)
@given(changes=edits, cut=st.none() | st.integers(0, len(GOOD)), header_only=st.booleans())
def test_damage_anywhere_in_a_file(tmp_path_factory, changes, cut, header_only):
  folder = tmp_path_factory.mktemp("damaged", numbered=True)
  if header_only:
    changes = [(8 + place % (len(GOOD) - 30), value) for place, value in changes]
  (folder / SINGLE).write_bytes(damaged(GOOD, changes, cut))
  read_all(folder)


@settings(max_examples=200, deadline=5000)
@given(changes=edits, cut=st.none() | st.integers(0, 200), which=st.sampled_from(["s1.safetensors", INDEX]))
def test_damage_anywhere_in_a_sharded_model(tmp_path_factory, changes, cut, which):
  folder = tmp_path_factory.mktemp("damaged", numbered=True)
  contents = {name.replace("__", "."): content for name, content in SHARDS.items()}
  contents[INDEX] = json.dumps({"metadata": {"total_size": 8}, "weight_map": RIGHT}).encode()
  contents[which] = damaged(contents[which], changes, cut)
  for name, content in contents.items():
    (folder / name).write_bytes(content)
  read_all(folder)


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
  max_leaves=8,
)
sizes = st.integers(0, 9) | st.integers(-(2**65), 2**65)
entries = st.fixed_dictionaries(
  {
    "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "BOOL", "C64", "I8", "?"]) | json_values,
    "shape": st.lists(sizes, max_size=4) | json_values,
    "data_offsets": st.lists(sizes, min_size=2, max_size=2) | json_values,
  }
)


@settings(max_examples=400, deadline=5000)
@given(
  header=json_values | st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3),
  index=json_values | st.fixed_dictionaries({"weight_map": json_values | st.dictionaries(st.text(), st.text())}),
  data=st.binary(max_size=64),
)
def test_any_header_and_any_index(tmp_path_factory, header, index, data):
  folder = tmp_path_factory.mktemp("crafted", numbered=True)
  (folder / SINGLE).write_bytes(file(header, data))
  read_all(folder)
  (folder / SINGLE).rename(folder / "s1.safetensors")
  (folder / INDEX).write_text(json.dumps(index))
  read_all(folder)
  (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "s1.safetensors"}}))
  read_all(folder)
