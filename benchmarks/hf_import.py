"""Speed and peak memory of importing a GPT-2 with random weights, in the files that transformers writes.

  python benchmarks/hf_import.py [--size=small|medium|large|xl] [--dtypes=float32,float16] [--dir=.] [--out=FILE.json]

`python -m tfm_jax.hf import` runs in a process of its own, and its seconds include the start of that process. For
comparison the script also times reading the file alone, and copying it (an import writes float32 parameters too). The
file was just written, so it is read from the page cache if that is large enough. Everything is removed at the end; xl
needs 19 GB of disk in --dir meanwhile.

Measured on a CPU with two cores, xl (1.56 G parameters): float32 file, 6.23 GB: 27.6 s, 0.23 GB/s (read alone 8.49,
copied 0.38), peak memory 6.63 GB = 1.06 x the parameters. float16 file, 3.12 GB: 31.3 s, peak 6.60 GB.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes  # noqa: F401  (numpy then knows bfloat16)
import numpy as np

from tfm_jax.hf.tensors import SINGLE, NewTensor, write_tensors

_ROOT = Path(__file__).parents[1]
_VOCABULARY, _POSITIONS = 50_257, 1024


class Size(NamedTuple):
  """What differs between the released sizes."""

  layers: int
  embed: int
  heads: int


_SIZES = {
  "small": Size(12, 768, 12),
  "medium": Size(24, 1024, 16),
  "large": Size(36, 1280, 20),
  "xl": Size(48, 1600, 25),
}


def main() -> int:
  """Prints one line per dtype, and writes the figures to --out."""
  parser = argparse.ArgumentParser(description="Speed and peak memory of importing a GPT-2.")
  parser.add_argument("--size", choices=_SIZES, default="xl")
  parser.add_argument("--dtypes", default="float32,float16", help="dtypes of the file, also bfloat16")
  parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="folder for the temporary files")
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  shapes = _shapes(_SIZES[args.size])
  parameters = sum(map(math.prod, shapes.values()))
  needed, free = 3 * 4 * parameters + 10**8, shutil.disk_usage(args.dir).free  # the model, and a copy or the run
  if free < needed:
    print(
      f"{args.dir} has {free / 1e9:.1f} GB free of {needed / 1e9:.1f} GB needed; choose another --dir", file=sys.stderr
    )
    return 2
  results = {}
  for dtype in args.dtypes.split(","):
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
      source = Path(folder) / "source"
      size = _write_model(source, _SIZES[args.size], shapes, np.dtype(dtype)) / 1e9
      read, copy = _read_seconds(source / SINGLE), _copy_seconds(source / SINGLE)
      seconds, peak = _import(source, Path(folder) / "run")
    results[dtype] = {"bytes": size * 1e9, "read_seconds": read, "copy_seconds": copy}
    results[dtype] |= {"import_seconds": seconds, "peak_bytes": peak}
    print(
      f"{args.size} {dtype}: {size:.2f} GB imported in {seconds:.1f} s, {size / seconds:.2f} GB/s "
      f"(read alone {size / read:.2f}, copied {size / copy:.2f}); "
      f"peak memory {peak / 1e9:.2f} GB, {peak / 4 / parameters:.2f} x the float32 parameters",
      flush=True,
    )
  if args.out:
    versions = {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()}
    versions |= {"machine": platform.machine(), "cpus": str(os.cpu_count())}
    args.out.write_text(
      json.dumps(
        {"results": results, "parameters": parameters, "arguments": vars(args), **versions}, default=str, indent=2
      )
    )
  return 0


def _shapes(size: Size) -> dict[str, tuple[int, ...]]:
  """Name -> shape of all tensors, with Hugging Face's names; matrices are [in, out]."""
  d = size.embed
  layer = {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d)}
  layer |= {"ln_2": (d,), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
  shapes: dict[str, tuple[int, ...]] = {"wte.weight": (_VOCABULARY, d), "wpe.weight": (_POSITIONS, d)}
  for n in range(size.layers):
    for name, shape in layer.items():
      shapes |= {f"h.{n}.{name}.weight": shape, f"h.{n}.{name}.bias": shape[-1:]}
  shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
  return {f"transformer.{name}": shape for name, shape in shapes.items()}


def _write_model(folder: Path, size: Size, shapes: dict[str, tuple[int, ...]], dtype: np.dtype) -> int:
  """Writes a complete model folder. Returns the size of its weights in bytes."""
  folder.mkdir()
  config = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "dtype": dtype.name,
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "n_embd": size.embed,
    "n_head": size.heads,
    "n_inner": None,
    "n_layer": size.layers,
    "n_positions": _POSITIONS,
    "vocab_size": _VOCABULARY,
    "bos_token_id": _VOCABULARY - 1,
    "eos_token_id": _VOCABULARY - 1,
    "tie_word_embeddings": True,
  }
  (folder / "config.json").write_text(json.dumps(config))
  _write_tokenizer(folder)
  rng = np.random.default_rng(0)

  def random(shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(dtype, copy=False)

  tensors = [NewTensor(name, shape, dtype, lambda shape=shape: random(shape)) for name, shape in shapes.items()]
  write_tensors(folder, tensors, max_shard_bytes=10**12)  # one file, as GPT-2 XL is published
  return (folder / SINGLE).stat().st_size


def _write_tokenizer(folder: Path) -> None:
  """Writes a tokenizer of GPT-2's form and size: the bytes as letters, and merged pairs of them."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [chr(code) for code in [*printable, *range(256, 256 + 256 - len(printable))]]
  pairs = [(a, b) for a in letters for b in letters][: _VOCABULARY - 257]
  tokens = [*letters, *(a + b for a, b in pairs), "<|endoftext|>"]
  vocabulary = {token: number for number, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def _read_seconds(path: Path) -> float:
  """Seconds to read a file into a buffer that is reused."""
  block = bytearray(1 << 24)
  begin = time.perf_counter()
  with path.open("rb", buffering=0) as file:
    while file.readinto(block):
      pass
  return time.perf_counter() - begin


def _copy_seconds(path: Path) -> float:
  """Seconds to copy a file, until the copy is on the disk."""
  copy = path.with_name("copy")
  begin = time.perf_counter()
  with path.open("rb") as source, copy.open("wb") as target:
    shutil.copyfileobj(source, target, 1 << 24)
    target.flush()
    os.fsync(target.fileno())
  seconds = time.perf_counter() - begin
  copy.unlink()
  return seconds


def _import(source: Path, workdir: Path) -> tuple[float, int]:
  """Seconds of the command, and its peak resident memory in bytes."""
  command = [sys.executable, "-m", "tfm_jax.hf", "import", f"--source={source}", f"--workdir={workdir}"]
  begin, peak = time.perf_counter(), 0
  with tempfile.TemporaryFile("w+") as output:
    # The peak is sampled: what the system reports of an ended child may be the peak of its parent.
    with subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=subprocess.STDOUT) as process:
      while process.poll() is None:
        peak = max(peak, _peak(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - begin
    if process.returncode:
      output.seek(0)
      sys.exit(f"{' '.join(command)} ended with status {process.returncode}:\n{output.read()}")
  return seconds, peak


def _peak(pid: int) -> int:
  """The peak resident memory of a process in bytes, 0 if it has ended. Linux only."""
  try:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
  sys.exit(main())
