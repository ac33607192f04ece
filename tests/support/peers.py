"""Which interpreter asks the other implementations (torch, transformers): tests marked `peers` run it."""

import functools
import importlib.util
import os
import sys


@functools.cache
def peer_python() -> str | None:
  """The interpreter that TFM_PEERS_PYTHON names, or this one if it has torch and transformers, or None."""
  named = os.environ.get("TFM_PEERS_PYTHON")
  if named:
    return named
  return sys.executable if all(map(importlib.util.find_spec, ("torch", "transformers"))) else None
