"""The report of each form of predictions."""

from collections.abc import Callable, Sequence

from tfm_jax.tasks.report.answers import AnswersReport
from tfm_jax.tasks.report.classes import ClassesReport
from tfm_jax.tasks.report.numbers import NumbersReport
from tfm_jax.tasks.report.parts import FormReport, Row
from tfm_jax.tasks.report.tags import TagsReport
from tfm_jax.tasks.report.texts import TextsReport

FORMS: dict[str, Callable[[Sequence[Row]], FormReport]] = {
  "classes": ClassesReport,
  "numbers": NumbersReport,
  "tags": TagsReport,
  "answers": AnswersReport,
  "texts": TextsReport,
}
