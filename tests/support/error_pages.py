"""Pages of errors as the tests read them."""

from xml.etree import ElementTree

from tfm_jax.tasks.report.page import errors_page
from tfm_jax.tasks.scores import score


def page_of(form, rows, **facts):
  return errors_page(form, rows, score(form, rows), "Errors", facts)


def tree(page):
  """The body as XML, which also checks that tags are balanced and attributes quoted."""
  return ElementTree.fromstring(page[page.index("<main>") : page.index("</main>") + len("</main>")])


def sections(page):
  return {one.findtext("h2"): one for one in tree(page).iter("section")}


def text_of(element):
  return "".join(element.itertext())


def cells(section):
  """The rows of a section's first table as text."""
  return [["".join(cell.itertext()) for cell in row] for row in section.find(".//table").iter("tr")]


def case_numbers(section):
  """The row numbers of the examples, in order."""
  return [
    int(text_of(one.find("small")).removeprefix("row ")) for one in section.iter("li") if one.find("small") is not None
  ]
