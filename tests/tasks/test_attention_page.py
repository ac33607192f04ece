"""The attention page and its command: what it shows is what the model computes, escaped, and mistakes are one line."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from tests.support.launching import quick_fit, tiny, write_experiment
from tests.support.looking import MASKED, PAIR, TEXT, WEIGHTS, make_run, run_of
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.sharding.placement import single_device
from tfm_jax.tasks import attention
from tfm_jax.tasks.looking.images import SHADES, png, shades
from tfm_jax.tasks.looking.look import look
from tfm_jax.tasks.looking.maps import maps
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer


def unpacked(data):
  """The entries of a PNG file of four bits per pixel."""
  width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
  start = data.index(b"IDAT")
  packed = zlib.decompress(data[start + 4 : start + 4 + int.from_bytes(data[start - 4 : start], "big")])
  lines = np.frombuffer(packed, np.uint8).reshape(height, -1)[:, 1:]
  return np.stack([lines >> 4, lines & 15], axis=-1).reshape(height, -1)[:, :width]


def test_an_image_holds_the_shades():
  x = np.random.default_rng(0).integers(0, SHADES, (5, 7)).astype(np.uint8)
  np.testing.assert_array_equal(unpacked(png(x)), x)
  assert shades(np.array([[0.0, 0.25, 1.0]])).tolist() == [[0, 8, 15]]  # the root of a quarter is a half
  assert shades(np.zeros((1, 2))).tolist() == [[0, 0]]


class Page(HTMLParser):
  """Checks that tags are balanced; collects text by class."""

  VOID = ("meta", "input")

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.text = [], [], ""
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.text += data


@pytest.mark.slow
@pytest.mark.parametrize("case", ["masks", "target", "answer"])
def test_the_page_shows_every_head_of_every_layer(case):
  run, texts = run_of(case)
  result = look(run, *texts)
  page = result.html()
  assert "script" not in Page(page).tags and "src=" not in page
  images = dict(re.findall(r'\.([a-z]+-\d+-\d+),[^{]*\{background-image:url\("data:image/png;base64,([^"]+)"\)', page))
  for stack, weights in result.attention.items():
    expected = WEIGHTS(run.model, run.params, result.example.batch, stack)[:, 0]
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    for n, h in np.ndindex(weights.shape[:2]):
      image = unpacked(base64.b64decode(images.pop(f"{stack or 'self'}-{n}-{h}")))
      np.testing.assert_array_equal(image, shades(weights[n, h]))
  assert not images
  for target in result.prediction.targets:
    assert target.where in page


def test_only_the_layers_asked_for_are_mapped():
  result = look(make_run("bert"), MASKED, layers=[1])
  page = result.html()
  assert 'id="self-1-0"' in page and 'id="self-0-0"' not in page
  assert page.count("<th>layer ") == 2  # ablation has all of them
  Page(page)


def test_text_is_escaped():
  texts = ["<b>bold</b> & 'q' \"d\" <script>"] * 30
  tokenizer = train_tokenizer(TokenizerConfig(kind="char"), texts)
  run = make_run("gpt", kind="char")
  run = dataclasses.replace(run, tokenizer=tokenizer)
  if tokenizer.vocab_size > run.model.vocab_size:
    model = dataclasses.replace(run.model, vocab_size=tokenizer.vocab_size)
    run = dataclasses.replace(run, model=model, params=jax.jit(model.init)(jax.random.key(0)))
  page = look(run, texts[0]).html()
  parsed = Page(page)  # which fails for tags that are not closed
  assert "script" not in parsed.tags and parsed.text.count(texts[0]) == 2  # in the title and in the heading
  assert "<span>&lt;</span>" in page and "<span><</span>" not in page


def test_a_head_that_predicts_nothing_still_has_its_attention():
  result = look(make_run("bert", head__name="none"), TEXT)
  assert result.prediction is None and result.saliency is None and result.ablation is None
  assert "has no prediction to explain" in result.html()


@pytest.mark.slow
def test_twelve_layers_of_twelve_heads_and_128_tokens_stay_small():
  draw = np.random.default_rng(0)
  weights = draw.dirichlet(np.full(128, 0.1), (12, 12, 128)).astype(np.float32)
  tokens = ["▁token"] * 128
  html = maps("self", weights, range(12), tokens, tokens, np.zeros(128, bool))
  assert len(html.encode()) < 3e6


def test_a_notebook_shows_it_in_a_frame():
  html = look(make_run("bert"), MASKED)._repr_html_()
  assert html.startswith("<div><iframe srcdoc=") and html.count("<") == 4  # all of the page is escaped


@pytest.mark.parametrize(
  ("family", "changes", "texts", "message"),
  [
    ("bert", {}, ("  ",), "the text is empty"),
    ("bert", {}, ("[SEP]",), "no token but symbols"),
    ("gpt", {}, ("\x07",), "the text has no tokens"),
    ("bert", {}, ("the cat " * 30,), r"the text has \d+ tokens, but the model has 32 positions: shorten it"),
    ("llama", {}, ("the cat " * 400,), r"the text has \d+ tokens, and pictures show at most 512"),
    ("gpt", {}, (TEXT, PAIR), "a pair is for encoders: family=gpt reads one text"),
    ("bert", {}, (TEXT, "", TEXT), "a target is for encoder-decoders"),
    ("bert", {"head__name": "question_answering"}, (TEXT,), "give the context as the pair"),
  ],
)
def test_refusals(family, changes, texts, message):
  with pytest.raises(UserError, match=message):
    look(make_run(family, **changes), *texts)


def test_other_refusals():
  run = make_run("bert")
  with pytest.raises(UserError, match="layer 2 does not exist: the model has the layers 0 to 1"):
    look(run, TEXT, layers=[0, 2])
  with pytest.raises(UserError, match="the run has no tokenizer"):
    look(dataclasses.replace(run, tokenizer=None), TEXT)
  config = resolve_model("vit", {"image.height": 8, "image.width": 8, "image.patch": 4})
  vision = dataclasses.replace(run, model=Model("vit", config, single_device(), 0), tokenizer=None)
  with pytest.raises(UserError, match="family=vit reads images"):
    look(vision, TEXT)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("attention")
  config = tiny(write_experiment(folder / "experiment"), "bert", train__steps=2, eval__batches=1)
  quick_fit(config, folder / "run")
  return folder / "run"


@pytest.mark.slow
def test_the_command_writes_the_page(workdir, tmp_path, monkeypatch, capsys):
  out = tmp_path / "page.html"
  arguments = [f"--workdir={workdir}", "--text=the [MASK]at", f"--out={out}", "--layers=0,1"]
  monkeypatch.setattr(sys, "argv", ["attention", *arguments])
  assert attention.main() == 0
  said = capsys.readouterr().out
  assert "mask at 5: " in said and f"written: {out}" in said
  assert Page(out.read_text(encoding="utf-8")).text.count("Layer 1, head 3") == 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--text=... is missing"),
    (["--text="], "--text=... is missing"),
    (["--text=a", "--layers=x"], "--layers=x: must be integers such as 0,5,11"),
    (["--text=a", "--step=1,2"], "--step=1,2: must be an integer"),
    (["--text=a", "--layers=9"], "layer 9 does not exist"),
    (["--text=a", "--config.seed=1"], "--config.seed does not apply here"),
    (["--text=a", "--out=/no/such/folder/x.html"], "is no folder"),
    (["--text=a long text " + "x" * 600], "shorten it"),
  ],
)
def test_mistakes_in_the_command_are_one_line(workdir, tmp_path, arguments, message, monkeypatch, capsys):
  out = tmp_path / "page.html"
  own = [] if any(argument.startswith("--out") for argument in arguments) else [f"--out={out}"]
  monkeypatch.setattr(sys, "argv", ["attention", f"--workdir={workdir}", *own, *arguments])
  assert attention.main() == 2
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1 and message in lines[0]
  assert not out.exists()


CLICK = """<script>addEventListener("load", () => {
  const image = query => getComputedStyle(document.querySelector(query)).backgroundImage;
  const first = image("#self .large .map") === image(".map.self-0-0");
  document.querySelector('.heat label[for="self-1-2"]').click();
  const said = [...document.querySelectorAll("#self .said")].filter(x => getComputedStyle(x).display !== "none");
  const e = document.documentElement;
  document.title = JSON.stringify({first, second: image("#self .large .map") === image(".map.self-1-2"),
    other: image(".map.self-1-2") !== image(".map.self-0-0"), said: said.map(x => x.textContent.split(":")[0]),
    overflow: e.scrollWidth - e.clientWidth}); });</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser_a_click_on_a_head_enlarges_its_map(width, tmp_path):
  browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
  if browser is None:
    pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
  page = tmp_path / "page.html"
  page.write_text(look(make_run("bert"), MASKED).html().replace("</body>", CLICK), encoding="utf-8")
  line = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
  line += [f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1200", "--virtual-time-budget=2000"]
  done = subprocess.run([*line, page.as_uri()], check=True, capture_output=True, text=True, timeout=120)
  result = json.loads(re.search(r"<title>(\{.*?\})</title>", done.stdout)[1])
  said = ["Layer 1, head 2"]
  assert result == {"first": True, "second": True, "other": True, "said": said, "overflow": 0}
