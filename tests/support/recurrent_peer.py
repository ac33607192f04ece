"""torch.nn.LSTM and torch.nn.GRU: outputs and gradients that ours are compared with. Runs under the peers' interpreter.

python tests/support/recurrent_peer.py
"""

import json

import torch

SIZES = {"tokens": 5, "rows": 2, "features": 4}


def numbers(count: int, start: int) -> torch.Tensor:
  """Numbers in [-0.5, 0.5) that depend on nothing but their place."""
  return ((torch.arange(start, start + count, dtype=torch.float64) * 0.618033988749895) % 1 - 0.5).float()


def run(kind: str, bidirectional: bool) -> dict:
  """Parameters, the output of two layers, and gradients, as nested lists."""
  width = SIZES["features"]
  cells = width // 2 if bidirectional else width
  model = getattr(torch.nn, kind.upper())(width, cells, num_layers=2, bidirectional=bidirectional, batch_first=True)
  start = 0
  for parameter in model.parameters():
    parameter.data = numbers(parameter.numel(), start).reshape(parameter.shape)
    start += parameter.numel()
  x = 4 * numbers(SIZES["rows"] * SIZES["tokens"] * width, 7).reshape(SIZES["rows"], SIZES["tokens"], width)
  x.requires_grad_()
  y, _ = model(x)
  (y * numbers(y.numel(), 3).reshape(y.shape)).sum().backward()
  state = {name: parameter.detach().tolist() for name, parameter in model.named_parameters()}
  gradients = {name: parameter.grad.tolist() for name, parameter in model.named_parameters()}
  return {"parameters": state, "gradients": gradients, "x": x.tolist(), "y": y.tolist(), "dx": x.grad.tolist()}


if __name__ == "__main__":
  print(json.dumps({f"{kind}-{way}": run(kind, way == "both") for kind in ("lstm", "gru") for way in ("one", "both")}))
