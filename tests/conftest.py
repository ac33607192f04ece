"""Eight CPU devices for every test, and one cache of compiled programs for all of them and their subprocesses."""

import os
import tempfile
from pathlib import Path

# Before JAX starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
if "TFM_CACHE_DIR" not in os.environ:
  _folder = tempfile.TemporaryDirectory(prefix="tfm_jax-")
  os.environ["TFM_CACHE_DIR"] = _folder.name

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(os.environ["TFM_CACHE_DIR"]) / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
