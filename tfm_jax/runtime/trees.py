"""Nested dictionaries of arrays, addressed by paths such as "blocks/attn/wq"."""

from collections.abc import Collection, Mapping
from typing import Any

import jax


def flat(tree: Any) -> dict[str, Any]:
  """Path -> leaf."""
  return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `flat`."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def partition(tree: Any, paths: Collection[str]) -> tuple[Any, Any]:
  """(the tree without the leaves at these paths, the tree of only these leaves)."""
  rest = {path: leaf for path, leaf in flat(tree).items() if path not in paths}
  chosen = {path: leaf for path, leaf in flat(tree).items() if path in paths}
  return nested(rest), nested(chosen)


def join(one: Any, other: Any) -> Any:
  """Inverse of `partition`."""
  return nested(flat(one) | flat(other))
