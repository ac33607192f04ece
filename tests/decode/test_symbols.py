"""How the texts of a model begin: what its objective adds, and what imported models have learned."""

import numpy as np
import pytest

from tests.support.tiny import SIZES
from tfm_jax.decode.prompts import Symbols, prompt_of
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.sharding.placement import single_device
from tfm_jax.text.tokenizers.characters import ByteTokenizer
from tfm_jax.training.config import from_dict
from tfm_jax.training.load import symbols_of

TOKENIZER = ByteTokenizer()  # pad 0, bos 2, eos 3


@pytest.mark.parametrize(
  ("family", "objective", "imported", "expected"),
  [
    ("bart", "bart", False, Symbols(2, 3)),
    ("bart", "bart", True, Symbols(2, 3)),
    ("t5", "span_corruption", False, Symbols(-1, 0)),
    ("t5", "span_corruption", True, Symbols(-1, 0)),
    ("t5", "seq2seq", False, Symbols(-1, 2)),
    ("t5", "seq2seq", True, Symbols(-1, 0)),
    ("gpt", "causal", False, Symbols(-1, 0)),
    ("gpt", "causal", True, Symbols(2, 0)),
    ("gpt", "prefix_lm", False, Symbols(-1, 0, prefix=True)),
    ("bert", "nsp", False, Symbols(2, 0)),
    ("bert", "mlm", False, Symbols(2, 0)),
  ],
)
def test_symbols_follow_from_objective_and_import(family, objective, imported, expected):
  config = from_dict({"family": family, "objective": {"name": objective}})
  assert symbols_of(config, TOKENIZER, imported) == expected


def test_an_encoder_of_bart_reads_bos_text_eos_and_its_decoder_starts_with_eos():
  model = Model("bart", resolve_model("bart", SIZES | {"max_positions": 34}), single_device(), 300)
  prompt = prompt_of(model, TOKENIZER, Symbols(2, 3), np.array([70, 71], np.int32))
  assert prompt.source.tolist() == [2, 70, 71, 3] and prompt.ids.tolist() == [3]
