"""Sources of text: the embedded corpus, text files, parallel files, tables of labelled texts."""

from tfm_jax.text.corpus import Corpus, Document
from tfm_jax.text.embedded import embedded_corpus
from tfm_jax.text.files import parallel_corpus, text_corpus
from tfm_jax.text.tables import Columns, table_classes, table_corpus

__all__ = [
  "Columns",
  "Corpus",
  "Document",
  "embedded_corpus",
  "parallel_corpus",
  "table_classes",
  "table_corpus",
  "text_corpus",
]
