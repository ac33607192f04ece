"""Sources of text: the embedded corpus, text files, parallel files."""

from tfm_jax.text.corpus import Corpus, Document
from tfm_jax.text.embedded import embedded_corpus
from tfm_jax.text.files import parallel_corpus, text_corpus

__all__ = ["Corpus", "Document", "embedded_corpus", "parallel_corpus", "text_corpus"]
