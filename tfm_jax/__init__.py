"""tfm_jax: pre-train Transformers of every family, on any mesh, with JAX."""
