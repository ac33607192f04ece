"""A GPT-2 in plain PyTorch, as short as it can be: what a reader of PyTorch's tutorials would write."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class Block(nn.Module):
  """Attention and a feed-forward layer, each after a norm and around a residual."""

  def __init__(self, width: int, heads: int, hidden: int) -> None:
    super().__init__()
    self.heads = heads
    self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.fc, self.proj = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x: Tensor) -> Tensor:
    rows, length, width = x.shape
    split = lambda y: y.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
    q, k, v = map(split, self.qkv(self.ln_1(x)).split(width, dim=2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(rows, length, width))
    return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class MinimalGPT(nn.Module):
  """Token ids [B, T] -> logits [B, T, V]; the token table is the output layer too."""

  def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int, hidden: int) -> None:
    super().__init__()
    self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
    self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
    self.ln_f = nn.LayerNorm(width)

  def forward(self, ids: Tensor) -> Tensor:
    x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
    for block in self.blocks:
      x = block(x)
    return F.linear(self.ln_f(x), self.wte.weight)

  @classmethod
  def load(cls, folder: Path) -> "MinimalGPT":
    """The model of a folder that transformers would load."""
    c = json.loads((folder / "config.json").read_text())
    model = cls(c["vocab_size"], c["n_positions"], c["n_embd"], c["n_layer"], c["n_head"], c["n_inner"])
    parts = {"attn.c_attn": "qkv", "attn.c_proj": "out", "mlp.c_fc": "fc", "mlp.c_proj": "proj"}
    tensors = {}
    for name, x in load_file(folder / "model.safetensors").items():
      name = name.removeprefix("transformer.").replace("h.", "blocks.", 1) if ".h." in name else name.split(".", 1)[1]
      for theirs, ours in parts.items():
        if theirs in name:
          name, x = name.replace(theirs, ours), x.T.contiguous() if x.ndim == 2 else x
      tensors[name] = x
    model.load_state_dict(tensors)
    return model
