"""Mixtures keep their shares in every stretch of rows; each source has its own epochs; rows follow from the step."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.launching import exact_rows, tiny, train, write_experiment, write_text
from tests.support.refusal import refusal
from tfm_jax.data.config import DataConfig, MixtureSource, check_data, resolve_data
from tfm_jax.data.dataset import Dataset, unigram_entropy
from tfm_jax.data.mixture import MixedDataset, Mixing, scaled
from tfm_jax.data.prepare import prepare
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.ops.losses import LossTerms
from tfm_jax.text.tokenizers.table import TokenizerConfig
from tfm_jax.training.config import from_dict, load, resolve, to_dict
from tfm_jax.training.pretraining import Pretraining

# ---- which source a row comes from

weights_of = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6)


@given(weights_of, st.integers(0, 2**38), st.integers(1, 400))
def test_every_stretch_of_samples_has_its_shares(weights, first, length):
  mixing = Mixing(weights)
  source, _ = mixing.sources(np.arange(first, first + length))
  counts = np.bincount(source, minlength=len(weights))
  expected = np.asarray(weights) / sum(weights) * length
  assert (abs(counts - expected) <= len(weights) + length * 2.0**-20).all()


@given(weights_of, st.integers(1, 500))
def test_the_places_of_a_source_count_its_samples(weights, length):
  mixing = Mixing(weights)
  source, place = mixing.sources(np.arange(length))
  for k in range(len(weights)):
    assert place[source == k].tolist() == list(range((source == k).sum()))
  assert mixing.counts(length).tolist() == np.bincount(source, minlength=len(weights)).tolist()


@given(weights_of, st.integers(0, 2**38), st.integers(1, 200))
def test_any_sample_is_found_without_those_before_it(weights, first, length):
  """From afar as well: the number of samples of a source before `first` is what its next one is numbered by."""
  mixing = Mixing(weights)
  source, place = mixing.sources(np.arange(first, first + length))
  before = mixing.counts(first)
  for k in range(len(weights)):
    assert place[source == k].tolist() == list(range(before[k], before[k] + (source == k).sum()))


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 60)), min_size=1, max_size=5))
def test_the_longest_mixture_repeats_no_row_and_wastes_none(sources):
  weights, limits = zip(*sources, strict=True)
  mixing = Mixing(weights)
  longest = mixing.longest(limits)
  assert (mixing.counts(longest) <= limits).all()
  assert (mixing.counts(longest + 1) > limits).any()


def test_temperature():
  assert scaled([3, 1], 1) == pytest.approx([0.75, 0.25])
  assert scaled([9, 1], 2) == pytest.approx([0.75, 0.25])  # square roots
  assert scaled([1e9, 1], 1e9) == pytest.approx([0.5, 0.5])
  assert scaled([3, 1], 0.5) == pytest.approx([0.9, 0.1])


# ---- batches

VOCABULARY = Vocabulary(70_000)


def sources_of(sizes: list[int], shuffle: bool = True, name: str = "mlm", batch_size: int = 8) -> list[Dataset]:
  """Data sets of so many rows of 16 tokens, whose tokens tell source and row."""
  datasets, first = [], 0
  for k, size in enumerate(sizes):
    tokens = np.arange(size * 16, dtype=np.uint32) + 10 + 10_000 * k
    offsets = np.array([0, len(tokens)], np.int64)
    split = Split("train", (Side(tokens, offsets, offsets * 4),))
    objective = make_objective(ObjectiveConfig(name), VOCABULARY, 16)
    datasets.append(Dataset(split, objective, batch_size, 3, True, shuffle, first))
    first += datasets[-1].num_rows
  return datasets


def test_each_source_has_its_own_epochs_order_and_masks():
  """The rows of a source are those that it has alone, in the same order and with the same masks."""
  alone = sources_of([5, 30, 11])
  mixed = MixedDataset(alone, [0.5, 0.2, 0.3], shuffle=True)
  batches = [mixed.batch(step) for step in range(20)]
  together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  source = np.searchsorted([5, 35, 46], together["rows"], side="right")
  for k, dataset in enumerate(alone):
    places = np.flatnonzero(source == k)
    expected = dataset.arrays(np.arange(len(places)), places // 8)
    for name, values in expected.items():
      np.testing.assert_array_equal(together[name][source == k], values, err_msg=name)
  assert (np.bincount(source) / len(source)).tolist() == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
  first_epoch = together["rows"][source == 0][:5]
  assert sorted(first_epoch.tolist()) == [0, 1, 2, 3, 4]
  assert mixed.num_rows == 46 and together["inputs"].shape == (160, 16)


def test_masks_of_two_sources_differ():
  batch = MixedDataset(sources_of([1, 1]), [1, 1], shuffle=True).batch(0)
  first, second = (batch["mlm_positions"][batch["rows"] == k] for k in (0, 1))
  assert not np.array_equal(first, second)


def test_a_process_makes_only_its_rows():
  mixed = MixedDataset(sources_of([5, 30]), [1, 3], shuffle=True)
  whole = mixed.batch(7)
  for mine in ([0, 1, 2, 3], [6], [5, 2]):
    part = mixed.batch(7, np.array(mine))
    for name, values in whole.items():
      np.testing.assert_array_equal(part[name], values[mine], err_msg=name)


@pytest.mark.parametrize("name", ["mlm", "causal"])
def test_evaluation_mixes_without_a_repetition(name):
  alone = sources_of([40, 6], shuffle=False, name=name)
  mixed = MixedDataset(alone, [1, 1], shuffle=False)
  batches = [mixed.batch(step) for step in range(mixed.num_batches())]
  weight = np.concatenate([batch["weights"] for batch in batches]).sum(axis=1)
  rows = np.concatenate([batch["rows"] for batch in batches])[weight > 0]
  assert len(rows) == len(set(rows.tolist())) == mixed.num_rows
  assert (rows >= 40).sum() == 6 and abs((rows < 40).sum() - 6) <= 1
  # What is counted is what was made.
  for limit in (0, 1):
    made = np.concatenate([batch["weights"] for batch in batches[: limit or None]])
    evaluated = mixed.evaluated(limit)
    assert evaluated.tokens == (made.sum() if name == "causal" else 0)
    assert evaluated.rows == min(mixed.num_rows, 8 * mixed.num_batches(limit))
  targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
  assert sorted(np.concatenate([*mixed.targets()]).tolist()) == sorted(targets.tolist())
  assert unigram_entropy(mixed) == pytest.approx(np.log(len(targets)))  # all are different


# ---- from the configuration to a run


@pytest.fixture
def texts(tmp_path, monkeypatch) -> tuple[Path, Path]:
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  (tmp_path / "numbers.txt").write_text("\n\n".join(f"{n} {n + 1} {n + 2}" for n in range(1000)))
  return write_text(tmp_path / "words.txt"), tmp_path / "numbers.txt"


MIXED = {"data__path": "", "data__source": "embedded"}  # what a mixture names itself


def mixture_of(texts: tuple[Path, Path], weights: tuple[float, float] = (3.0, 1.0)) -> list[dict[str, object]]:
  return [{"path": str(path), "weight": w, "eval_fraction": 0.1} for path, w in zip(texts, weights, strict=True)]


def test_a_mixture_in_an_experiment_file_and_on_a_command_line(texts, tmp_path):
  file = tmp_path / "mixed.py"
  file.write_text(f"from configs import quickstart\n\n\ndef get_config():\n  c = quickstart.get_config().unlock()\n"
                  f"  c.data.mixture = {mixture_of(texts)!r}\n  return c.lock()\n")  # fmt: skip
  config = resolve(load(str(file)))
  assert [(s.name, s.source, s.weight) for s in config.data.mixture] == [("words", "text", 3), ("numbers", "text", 1)]
  assert from_dict(json.loads(json.dumps(to_dict(config)))) == config and hash(config)
  other = load("configs/quickstart.py", {"data.mixture": json.dumps(mixture_of(texts))})
  assert resolve(other).data == config.data


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.mixture": "[1]"}, "config.data.mixture[0]=1 is not a section"),
    ({"data.mixture": "{"}, "--config.data.mixture={: a JSON list of sections is expected"),
    ({"data.mixture": '[{"weigth": 1}]'}, "config.data.mixture[0] has no key weigth; did you mean weight?"),
    ({"data.mixture": '[{"weight": "1"}]'}, "config.data.mixture[0].weight='1' is of type str"),
    ({"data.mixture": '[{"weight": 1}, {"path": "a"}]'}, "give every source one above 0"),
    ({"data.mixture": '[{"source": "wiki"}]'}, "data.source='wiki' is not one of"),
    ({"data.mixture": '[{"path": "a/x.txt"}, {"path": "b/x.txt"}]'}, "two sources of the name x"),
    (
      {"data.mixture": '[{"path": "first.txt"}]', "data.first_steps": "5", "data.first_seq_len": "8"},
      "name=first is what data.first_steps calls its held-out rows",
    ),
    ({"data.mixture": '[{"path": "a.txt"}]', "data.path": "b.txt"}, "data.path=b.txt is not read beside data.mixture"),
    ({"data.mixture": '[{"path": "a.txt"}]', "task.name": "sst2"}, "data.mixture is for pre-training"),
    ({"data.duplicates": "near", "task.name": "sst2"}, "data.duplicates is for pre-training"),
    ({"data.mixture": '[{"path": "a.txt"}]', "data.mixture_temperature": "0"}, "must be above 0"),
  ],
)
def test_mistakes_are_named(changes, message):
  assert message in refusal(lambda: resolve(load("configs/quickstart.py", changes)))


def test_names_come_from_paths():
  paths = {"a/words.en.txt.gz": "words", "b/c-*/*.txt": "b", "d.e/x[0-9]": "d", "*.txt": "text", "/*.txt": "text"}
  paths |= {"": "embedded", "my text/": "my_text"}
  for path, name in paths.items():
    (only,) = resolve_data(DataConfig(mixture=(MixtureSource(path=path),))).mixture
    assert only.name == name
  (only,) = resolve_data(DataConfig(mixture=(MixtureSource("tfds", "wikipedia/20230601.en:1.0.0"),))).mixture
  assert only.name == "wikipedia"


def test_weights_default_to_rows(texts, caplog):
  caplog.set_level("INFO")
  mixture = tuple(MixtureSource("text", str(path)) for path in texts)
  data = DataConfig(mixture=mixture, seq_len=16)
  prepared = prepare(data, TokenizerConfig(kind="byte"), ObjectiveConfig("causal"), 0)
  sizes = [source.token_file.train.num_tokens for source in prepared.sources]
  assert prepared.weights == pytest.approx([size / sum(sizes) for size in sizes], rel=0.01)
  (block,) = [message for message in caplog.messages if message.startswith("mixture:")]
  assert [line.split()[0] for line in block.splitlines()[1:]] == ["source", "words", "numbers"]
  check_data(dataclasses.replace(data, mixture_temperature=2.0))
  flatter = prepare(dataclasses.replace(data, mixture_temperature=2.0), TokenizerConfig(kind="byte"),
                    ObjectiveConfig("causal"), 0)  # fmt: skip
  ratio = flatter.weights[0] / flatter.weights[1]
  assert ratio == pytest.approx((prepared.weights[0] / prepared.weights[1]) ** 0.5)
  assert flatter.fingerprints["data"] != prepared.fingerprints["data"]


def test_one_tokenizer_learns_from_all_sources(texts):
  data = DataConfig(mixture=tuple(MixtureSource("text", str(path)) for path in texts), seq_len=16)
  tokenizer = prepare(data, TokenizerConfig(kind="char"), ObjectiveConfig("causal"), 0).tokenizer
  assert tokenizer.unk_id not in tokenizer.encode("the cat 0123456789")


def test_pairs_and_texts_do_not_mix(texts):
  pair = MixtureSource("parallel", str(texts[0]), str(texts[0]))
  data = DataConfig(mixture=(pair, MixtureSource("text", str(texts[1]))), seq_len=16)
  assert "cannot be mixed" in refusal(prepare, data, TokenizerConfig(kind="byte"), ObjectiveConfig("seq2seq"), 0)


def test_every_source_is_evaluated_on_its_own_held_out_rows(texts, tmp_path):
  config = tiny(write_experiment(tmp_path / "experiment"), "gpt", **MIXED, data__mixture=mixture_of(texts))
  task = Pretraining(resolve(config))
  assert [*task.eval_streams] == ["eval", "eval_words", "eval_numbers"]
  seen = {}
  for split, stream in task.eval_streams.items():
    inputs = np.concatenate([batch["inputs"] for batch in stream(None)])
    seen[split] = np.isin(inputs, task.tokenizer.encode("0123456789")).mean()
    metrics = task.eval_metrics(split, LossTerms({}, {"labels": (20.0, 10.0)}, {}), [])
    assert {"bits_per_byte", "perplexity", "unigram_entropy"} <= {*metrics}
  assert seen["eval_words"] == 0 and seen["eval_numbers"] > 0.5
  assert seen["eval"] == pytest.approx(seen["eval_numbers"] / 4, rel=0.2)


@pytest.mark.slow
def test_a_mixture_resumes_on_another_number_of_devices_with_the_same_rows(texts, tmp_path):
  experiment = write_experiment(tmp_path / "experiment")
  flags = [f"--config={experiment}", *(f"--config.{key.replace('__', '.')}={value}" for key, value in MIXED.items())]
  flags += [f"--config.data.mixture={json.dumps(mixture_of(texts))}", "--config.optimizer.schedule=constant"]
  whole, part = tmp_path / "whole", tmp_path / "part"
  assert train(*flags, f"--workdir={whole}", devices=4).returncode == 0
  assert train(*flags, f"--workdir={part}", "--config.train.steps=5", devices=4).returncode == 0
  done = train(*flags, f"--workdir={part}", "--config.sharding.strategy=fsdp", devices=2)
  assert done.returncode == 0, done.stderr
  actual = {key: row for key, row in exact_rows(part).items() if key[1] > 5}
  expected = {key: row for key, row in exact_rows(whole).items() if key[1] > 5}
  splits = {"train", "eval", "eval_words", "eval_numbers"}
  assert [*actual] == [*expected] and {split for split, _ in actual} == splits
  for key, row in expected.items():
    assert actual[key]["loss"] == pytest.approx(row["loss"], rel=1e-5), key
