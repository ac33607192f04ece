"""Decoders in float64 with plain loops over rows, heads, tokens and experts: an oracle of the block."""

import math

import numpy as np

from tfm_jax.models.config import ModelConfig


def forward(c: ModelConfig, params, batch, training=False):
  """(logits [B, T, V], what experts did in each layer and row) of a decoder with one stack."""
  rows = [_row(c, _wide(params), {k: x[i] for k, x in batch.items()}, training) for i in range(len(batch["inputs"]))]
  return np.stack([logits for logits, _ in rows]), [done for _, done in rows]


def _wide(tree):
  return {k: _wide(x) if isinstance(x, dict) else np.asarray(x, np.float64) for k, x in tree.items()}


def _row(c, p, row, training):
  x = p["embed"]["token"][row["inputs"]]
  if c.positions == "learned":
    x = x + p["embed"]["position"][row["positions"]]
  done = []
  for n in range(c.num_layers):
    b = _layer(p["blocks"], n)
    attend = lambda y, b=b: _attention(c, b["attn"], y, row)
    feed = lambda y, b=b: _feed_forward(c, b["mlp"], y, row, training, done)
    if c.norm_order == "parallel":
      y = _norm(c, b["norm"], x)
      x = x + attend(y) + feed(y)
      continue
    for name, f in (("attn", attend), ("mlp", feed)):
      if c.norm_order == "pre":
        x = x + f(_norm(c, b[f"{name}_norm"], x))
      elif c.norm_order == "rezero":
        x = x + b["gain"] * f(x)
      else:
        alpha = (2 * c.num_layers) ** (1 / 4) if c.norm_order == "deepnorm" else 1
        x = _norm(c, b[f"{name}_norm"], alpha * x + f(x))
  if c.norm_order in ("pre", "parallel"):
    x = _norm(c, p["final_norm"], x)
  return x @ (p["embed"]["token"] if c.tied else p["head"]["w"]).T, done


def _layer(tree, n):
  return {k: _layer(x, n) if isinstance(x, dict) else x[n] for k, x in tree.items()}


def _norm(c, p, x):
  x = x - x.mean(-1, keepdims=True) if c.norm == "layer" else x
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * p["scale"] + p.get("bias", 0)


def _attention(c, p, x, row):
  T, R = len(x), c.num_heads // c.kv_heads
  q, k, v = (np.einsum("td,dhk->htk", x, p[f"w{n}"]) + p.get(f"b{n}", np.zeros(1))[..., None, :] for n in "qkv")
  if "q_norm" in p:
    q, k = _norm(c, p["q_norm"], q), _norm(c, p["k_norm"], k)
  if c.positions == "rotary":
    q, k = (_rotated(c, y, row["positions"]) for y in (q, k))
  out = p.get("bo", 0) + np.zeros((T, c.embed_dim))
  for h in range(c.num_heads):
    for t in range(T):
      segment = row["segment_ids"][t]
      seen = [s for s in range(t + 1) if row["segment_ids"][s] != 0 and segment in (0, row["segment_ids"][s])]
      if not seen:
        continue
      logits = np.array([q[h, t] @ k[h // R, s] / math.sqrt(c.head_features) for s in seen])
      if c.positions == "alibi":  # 4 heads
        logits = logits - np.array([t - s for s in seen]) * 2.0 ** -(2 * (h + 1))
      weights = np.exp(logits - logits.max())
      out[t] += (weights / weights.sum()) @ v[h // R, seen] @ p["wo"][h]
  return out


def _rotated(c, y, positions):
  half = y.shape[-1] // 2
  angles = positions[:, None] * c.rotary.base ** (-np.arange(half) / half)
  a, b = y[..., :half], y[..., half:]
  return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def _activated(c, p, x, e=...):
  """A feed-forward layer: the only one, or expert e."""
  of = lambda name: p[name][e] if name in p else 0
  h = x @ of("wi") + of("bi")
  if c.activation == "silu":
    h = h / (1 + np.exp(-h))
  else:
    assert c.activation == "gelu_tanh"
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
  return (h * (x @ of("wg") + of("bg")) if c.gated else h) @ of("wo") + of("bo")


def _feed_forward(c, p, x, row, training, done):
  if not c.experts.count:
    return _activated(c, p, x)
  E, K, out, taken = c.experts.count, c.experts.top_k, np.zeros_like(x), [0] * c.experts.count
  group = c.experts.group or len(x)
  most = math.ceil(c.experts.capacity * group * K / E) if training and c.experts.capacity else len(x)
  chosen, probabilities, z, dropped = np.zeros(E), np.zeros(E), 0.0, 0
  for t in range(len(x)):
    taken = [0] * E if training and t % group == 0 else taken
    real = row["segment_ids"][t] != 0
    logits = x[t] @ p["router"]
    probability = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-probability)[:K]
    gates = probability[best] / (probability[best].sum() if K > 1 else 1)
    for e, gate in zip(best, gates, strict=True):
      if not training or (real and taken[e] < most):
        out[t] += gate * _activated(c, p["experts"], x[t], e)
      dropped += real and training and taken[e] >= most
      taken[e] += real
    if real:
      chosen[best] += 1
      probabilities += probability
      z += np.log(np.exp(logits).sum()) ** 2
  n = (row["segment_ids"] != 0).sum()
  done.append({"balance": E * (chosen / (K * n)) @ (probabilities / n) * n, "router_z": z, "dropped": dropped, "n": n})
  return out
