"""What `model.logits` and its kin refuse to read, each in one line: they would fail further in, or return nonsense."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_heads import batch_of, make
from tests.support.tiny import VARIANTS, VOCAB, make_batch, make_model
from tfm_jax.errors import UserError

IDS = np.zeros((2, 8), np.int32)


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0))


def refusal(model, batch, traced=False):
  """What the model says of a batch, before it computes anything."""
  with pytest.raises(UserError) as caught:
    if traced:
      jax.eval_shape(model.logits, shapes(model), batch)
    else:
      model.apply(shapes(model), batch)
  assert "\n" not in str(caught.value)
  return str(caught.value)


SHAPES = {
  "nothing": ("bert", {}, "no 'inputs'"),
  "names of elsewhere": ("gpt", {"input_ids": IDS}, "no 'inputs', which this model reads; it has input_ids"),
  "one side": ("t5", {"encoder_inputs": IDS}, "no 'decoder_inputs'"),
  "one row": ("gpt", {"inputs": IDS[0]}, "'inputs'] has shape [8], but must have [rows, tokens]"),
  "floats": ("bert", {"inputs": IDS.astype(np.float32)}, "'inputs'] has dtype float32"),
  "too long": ("bert", {"inputs": np.zeros((2, 33), np.int32)}, "rows of 33 tokens, but the model has 32 learned"),
  "segments": (
    "bert",
    {"inputs": IDS, "segment_ids": IDS[:, 1:]},
    "'segment_ids'] has shape [2, 7], but must have [2, 8]",
  ),
  "rows": ("t5", {"encoder_inputs": IDS, "decoder_inputs": IDS[:1]}, "'decoder_inputs'] has shape [1, 8]"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_are_checked_while_tracing(case):
  variant, batch, named = SHAPES[case]
  assert named in refusal(make_model(variant), batch, traced=True)
  assert named in refusal(make_model(variant), batch)


VALUES = {
  "beyond the vocabulary": ("gpt", {"inputs": IDS + VOCAB}, f"'inputs'] holds {VOCAB}, but must lie between 0 and 249"),
  "negative": ("llama", {"inputs": jnp.asarray(IDS - 1)}, "'inputs'] holds -1"),
  "of the decoder": ("t5", {"encoder_inputs": IDS, "decoder_inputs": IDS + 300}, "'decoder_inputs'] holds 300"),
  "types": ("bert", {"inputs": IDS, "token_types": IDS + 2}, "'token_types'] holds 2, but must lie between 0 and 1"),
  "positions": ("bert", {"inputs": IDS, "positions": IDS + 32}, "'positions'] holds 32"),
  "places": ("bert", {"inputs": IDS, "mlm_positions": IDS[:, :2] + 8}, "'mlm_positions'] holds 8"),
  "a list": ("gpt", {"inputs": IDS.tolist()}, "'inputs'] is a list, not an array"),
  "no dictionary": ("gpt", IDS, "a batch is a dictionary of arrays"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_are_checked_where_they_are_known(case):
  variant, batch, named = VALUES[case]
  assert named in refusal(make_model(variant), batch)


def test_images_have_the_size_of_the_model():
  model = make("vit")
  assert "no 'images'" in refusal(model, {"inputs": IDS})
  images = batch_of("vit")["images"]
  assert re.search(r"'images'\] has shape .*, but must have", refusal(model, {"images": images[:, 1:]}, traced=True))
  assert "a single row" in refusal(model, {"images": images[0]})


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_models_are_trained_on_is_read(variant):
  batch = make_batch(variant)
  assert jax.eval_shape(make_model(variant).logits, shapes(make_model(variant)), batch).shape[0] == len(batch["rows"])


def test_packed_rows_may_be_longer_than_the_table_of_positions():
  positions = np.tile(np.arange(20, dtype=np.int32), (2, 2))
  batch = {"inputs": np.zeros((2, 40), np.int32), "positions": positions, "segment_ids": positions * 0 + 1}
  model = make_model("bert")
  assert jax.eval_shape(model.logits, shapes(model), batch).shape[:2] == (2, 40)
