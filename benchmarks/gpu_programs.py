"""What XLA compiles for GPUs that need not be here: python -m benchmarks.gpu_programs --out=DIR.

For each config and strategy: the attention kernel, peak memory, what collectives send against the least that the
strategy must send, and the largest temporary. Needs the extra `forecast`.

--configs=bert_base,gpt2_small,t5_base,decoder  files in configs/
--strategies=dp,fsdp,tp,fsdp_tp
--topology=h100:8        see --topology of tfm_jax.compare
--rows=8                 rows per device
--layers=0               number of blocks of a stack; 0: the config's own
--out=runs/gpu_programs  the folder for gpu_programs.json and gpu_programs.html
--config.KEY=VALUE       replaces a key of all configs
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("configs", "strategies", "topology", "rows", "layers", "out")
COLUMNS = [
  "config",
  "strategy",
  "attention",
  "peak MiB",
  "sent MiB",
  "least MiB",
  "async",
  "bf16 products",
  "largest temporary",
  "compile s",
]
_NO_ARRAY = ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "constant")


def main(flags: Flags) -> None:
  """Compiles each program and prints a table."""
  from benchmarks import output
  from tfm_jax.compare.forecast.topology import chip_count
  from tfm_jax.runtime.reporting import page

  configs = flags.values.get("configs", "bert_base,gpt2_small,t5_base,decoder").split(",")
  strategies = flags.values.get("strategies", "dp,fsdp,tp,fsdp_tp").split(",")
  rows, layers = output.count_of(flags, "rows", 8, 1), output.count_of(flags, "layers", 0, 0)
  out = output.folder_of(flags, "runs/gpu_programs")
  topology = flags.values.get("topology", "h100:8")
  overrides = {"train.batch_size": rows * chip_count(topology), "train.microbatches": 1} | flags.overrides
  points = []
  for config in configs:
    for strategy in strategies:
      points.append(measure(config, strategy, topology, overrides, layers))
      print("  ".join(_row(points[-1])), flush=True)
  table = [_row(point) for point in points]
  print(f"\n{output.text_table(COLUMNS, table)}")
  results = {"command": output.command("benchmarks.gpu_programs"), "points": points}
  body = page.section("By config and strategy", "", page.table(COLUMNS, table, text_columns=3))
  output.write(out, "gpu_programs", "Programs for GPUs", "Compiled without a GPU; nothing was run.", results, body)


def measure(config: str, strategy: str, topology: str, overrides: dict[str, Any], layers: int) -> dict[str, Any]:
  """What the compiled train step of a config tells of itself."""
  from tfm_jax.compare.compiled import hlo
  from tfm_jax.compare.compiled.collectives import collectives
  from tfm_jax.compare.compiled.minimum import minimum_bytes
  from tfm_jax.compare.forecast.topology import compiler_options, topology_devices
  from tfm_jax.compare.program import build_program, with_strategy
  from tfm_jax.training.config import load

  start = time.perf_counter()
  loaded = load(f"configs/{config}.py", overrides)
  if layers:
    depths = {"num_layers": layers} | ({"decoder_layers": layers} if loaded.model.decoder_layers else {})
    loaded = dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, **depths))
  program = build_program(with_strategy(loaded, strategy), topology_devices(topology)[1])
  compiled = program.compile(1, compiler_options(topology))
  text = compiled.as_text()
  module = hlo.parse(text)
  instructions = list(outside_fusions(module, module.entry))
  sent = collectives(module, program.model.placement.mesh)
  least = minimum_bytes(program, 1)
  largest = max((i for i in instructions if i.op not in _NO_ARRAY), key=lambda i: max(map(hlo.shape_bytes, i.shapes)))
  kinds = [i for i in instructions if i.kind]
  products = [i for i in instructions if "__cublas" in i.rest]
  return {
    "config": config,
    "strategy": strategy,
    "attention": attention_of(text),
    "peak": compiled.memory_analysis().peak_memory_in_bytes,
    "collectives": [dataclasses.asdict(c) for c in sent],
    "sent": sum(c.bytes for c in sent),
    "least": sum(least.values()),
    "asynchronous": sum(i.op.endswith("-start") for i in kinds),
    "instructions": len(kinds),
    "bfloat16": sum(_reads_bfloat16(i, module) for i in products),
    "products": len(products),
    "largest": max(largest.shapes, key=hlo.shape_bytes)[:2],
    "largest_bytes": max(map(hlo.shape_bytes, largest.shapes)),
    "seconds": time.perf_counter() - start,
  }


def outside_fusions(module: Any, name: str) -> Iterator[Any]:
  """The instructions of a computation, and of loops and branches in it, but not those of fusions."""
  for i in module.computations[name].instructions:
    yield i
    if i.op in ("while", "call"):
      inner = i.called("body") or i.called("to_apply")
      if inner in module.computations:
        yield from outside_fusions(module, inner)


def _reads_bfloat16(i: Any, module: Any) -> bool:
  """Whether both operands of a product are bfloat16."""
  where = next(c for c in module.computations.values() if i.name in c.by_name)
  return all(where.by_name[name].shapes[0][0] == "bf16" for name in i.operands[:2])


def attention_of(text: str) -> str:
  """The attention kernel that a program shows: see `ops.attention.KERNELS`."""
  from tfm_jax.ops.experts import SHARE

  return "cudnn" if "__cudnn$fmha" in text else "tiles" if SHARE in text else "xla"


def _row(point: dict[str, Any]) -> list[str]:
  dtype, shape = point["largest"]
  return [
    point["config"],
    point["strategy"],
    point["attention"],
    *(f"{point[name] / 2**20:,.0f}" for name in ("peak", "sent", "least")),
    f"{point['asynchronous']} of {point['instructions']}",
    f"{point['bfloat16']} of {point['products']}",
    f"{dtype}[{','.join(map(str, shape))}] {point['largest_bytes'] / 2**20:,.0f} MiB",
    f"{point['seconds']:.0f}",
  ]


if __name__ == "__main__":
  import os

  from tfm_jax.compare.worker import FORECAST_ENV

  os.environ |= FORECAST_ENV
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
