"""Sources of text: the embedded corpus, text files and JSON lines, parallel files, columns, TensorFlow Datasets."""

from tfm_jax.text.corpora.columns import arrow_corpus, parquet_corpus
from tfm_jax.text.corpora.corpus import Corpus, Document, joined
from tfm_jax.text.corpora.embedded import embedded_corpus
from tfm_jax.text.corpora.files import ERRORS, check_split
from tfm_jax.text.corpora.parallel import parallel_corpus
from tfm_jax.text.corpora.text_files import DOCUMENTS, text_corpus
from tfm_jax.text.corpora.tfds import tfds_corpus

__all__ = [
  "DOCUMENTS",
  "ERRORS",
  "Corpus",
  "Document",
  "arrow_corpus",
  "check_split",
  "embedded_corpus",
  "joined",
  "parallel_corpus",
  "parquet_corpus",
  "text_corpus",
  "tfds_corpus",
]
