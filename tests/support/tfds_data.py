"""Data sets as TensorFlow Datasets prepares them, in ArrayRecord files, of made-up examples, without TensorFlow."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Examples = Mapping[str, Sequence[Mapping[str, Any]]]
"""split -> its examples."""


def write_data(
  root: Path,
  name: str,
  features: Mapping[str, Any],
  splits: Examples,
  config: str = "",
  version: str = "1.0.0",
  shards: int = 1,
  file_format: str = "array_record",
) -> Path:
  """Prepares a data set NAME[/CONFIG]:VERSION and returns its folder. Keys decide the order, as TFDS shuffles."""
  import tensorflow_datasets as tfds

  class Data(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    code_path = None  # TFDS would look for checksums beside the code, with a package that it does not install
    VERSION = tfds.core.Version(version)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples):
      yield from enumerate(examples)

  Data.name = name
  return _prepare(Data, root, config, shards, file_format)


def write_glue(root: Path, task: str, splits: Examples) -> Path:
  """Prepares glue/TASK with the name, version and features of TFDS's own builder, which would download its examples."""
  glue = importlib.import_module("tensorflow_datasets.text.glue")

  class Glue(glue.Glue, skip_registration=True):
    code_path = None

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples):
      for number, example in enumerate(examples):
        yield number, {"idx": number, **example}

  Glue.name = "glue"
  return _prepare(Glue, root, task)


def _prepare(kind: type, root: Path, config: str, shards: int = 1, file_format: str = "array_record") -> Path:
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  builder = kind(data_dir=root, config=config or None, file_format=file_format)
  download_config = tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
  builder.download_and_prepare(download_config=download_config)
  return Path(builder.data_dir)
