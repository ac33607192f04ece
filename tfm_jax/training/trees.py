"""Nested dictionaries of arrays by path, as "blocks/attn/wq"."""

from collections.abc import Collection, Mapping
from typing import Any

import jax


def flat(tree: Any) -> dict[str, Any]:
  """Path -> leaf."""
  return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The tree of `flat`."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    place = tree
    for parent in parents:
      place = place.setdefault(parent, {})
    place[name] = leaf
  return tree


def partition(tree: Any, paths: Collection[str]) -> tuple[Any, Any]:
  """(the tree without the leaves at these paths, the tree of them alone)."""
  leaves = flat(tree)
  return nested({p: x for p, x in leaves.items() if p not in paths}), nested(
    {p: leaves[p] for p in leaves if p in paths}
  )


def join(one: Any, other: Any) -> Any:
  """The tree of both parts of a `partition`."""
  return nested(flat(one) | flat(other))
