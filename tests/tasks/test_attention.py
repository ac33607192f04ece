"""Looking into models: saliency and ablation against independent computations, and the page and its command."""

import base64
import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.support.tiny as tiny_models
from tests.support.launching import ROOT, environment, quick_fit, tiny, write_experiment
from tfm_jax.errors import UserError
from tfm_jax.models.families import bert
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.models.layers import Attention
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.sharding.placement import single_device
from tfm_jax.tasks.looking.ablation import STACKS, ablate, without_heads
from tfm_jax.tasks.looking.example import read
from tfm_jax.tasks.looking.images import SHADES, png, shades
from tfm_jax.tasks.looking.look import look
from tfm_jax.tasks.looking.maps import maps
from tfm_jax.tasks.looking.prediction import predict
from tfm_jax.tasks.looking.saliency import saliency
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer
from tfm_jax.training.config import from_dict
from tfm_jax.training.load import Run

TEXTS = ["the cat sat on the mat and saw the bird", "a dog ran after one small grey bird", "all of the town sat"] * 20
TEXT, MASKED, PAIR = "the cat sat on the mat", "the cat [MASK] on the [MASK]", "a dog ran"
SMALL = tiny_models.SIZES | {"dropout": 0.0, "attention_dropout": 0.0}


@functools.cache
def tokenizer_of(kind):
  return train_tokenizer(TokenizerConfig(kind=kind, vocab_size={"wordpiece": 120, "char": 0}[kind]), TEXTS)


@functools.cache
def make_run(family, kind="wordpiece", objective="", **changes):
  """A run with disturbed parameters; `head__name` stands for head.name."""
  tokenizer = tokenizer_of(kind)
  fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
  model = Model(family, resolve_model(family, fields), single_device(), tokenizer.vocab_size)
  leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(1)))
  keys = jax.random.split(jax.random.key(2), len(leaves))
  params = tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
  config = from_dict({"objective": {"name": objective}} if objective else {})
  return Run(config, model, params, tokenizer, 7)


CLASSES = {"head__num_labels": 3, "head__labels": "O|B-PER|I-PER"}
CASES = {
  "masks": (("bert", {}), (MASKED,)),
  "text without masks": (("modernbert", {"window__size": 2, "window__global_every": 2}), (TEXT,)),
  "roberta": (("roberta", {}), (MASKED,)),
  "distilbert": (("distilbert", {}), (MASKED,)),
  "next token": (("gpt", {}), (TEXT,)),
  "llama": (("llama", {"num_kv_heads": 2}), (TEXT,)),
  "target": (("t5", {"objective": "span_corruption", "activation": "gelu"}), (TEXT, "", PAIR)),
  "written": (("transformer", {"objective": "seq2seq", "decoder_layers": 1, "activation": "gelu"}), (TEXT,)),
  "classes": (("bert", CLASSES | {"head__name": "sequence_classification"}), (TEXT, PAIR)),
  "value": (("bert", {"head__name": "sequence_classification", "head__num_labels": 1}), (TEXT,)),
  "tags": (("electra", CLASSES | {"head__name": "token_classification", "embedding_dim": 16}), (TEXT,)),
  "answer": (("bert", {"head__name": "question_answering"}), (PAIR, TEXT)),
  "replaced": (("electra", {"head__name": "replaced_token_detection", "embedding_dim": 16}), (TEXT,)),
}


def cases(*fast):
  """Every case; those that are not named are slow."""
  marked = [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
  return pytest.mark.parametrize("case", marked)


def run_of(case):
  (family, changes), texts = CASES[case]
  return make_run(family, **changes), texts


LOGITS, PREDICT = (jax.jit(f, static_argnums=0) for f in (Model.logits, Model.predict))
HIDDEN, WEIGHTS = (jax.jit(f, static_argnums=(0, 3)) for f in (Model.hidden_states, Model.attention_weights))


@functools.cache
def looked(case):
  """(run, example, prediction) of a case."""
  run, texts = run_of(case)
  example = read(run, *texts)
  return run, example, predict(example)


def expected_log_probs(model, size, params, batch):
  """[P, C], written down again: from the logits of the public API."""
  y = np.asarray(LOGITS(model, params, batch), np.float64)[0]
  head = model.config.head
  if head.name == "lm":
    y = y[:, :size]
  elif head.name == "sequence_classification":
    y = y[None]
  elif head.name == "question_answering":
    y = y.T
  elif head.name == "replaced_token_detection":
    y = np.stack([np.zeros_like(y), y], axis=-1)
  return y if y.shape[-1] == 1 else y - np.log(np.exp(y).sum(-1, keepdims=True))


def values_of(example, params, prediction, shifts=None):
  """The log-probability of each target, with the embeddings of a side shifted."""
  shifts, width = shifts or {}, example.model.config.embed_dim
  batch = dict(example.batch)
  for side, ids in example.ids.items():
    name = f"{side}_embedding_shifts" if side else "embedding_shifts"
    batch[name] = shifts.get(side, np.zeros((1, len(ids), width), np.float32))
  numbers = expected_log_probs(example.model, example.tokenizer.vocab_size, params, batch)
  return np.array([numbers[t.place, t.choice] for t in prediction.targets]), numbers


@cases("masks", "next token", "target", "tags")
def test_saliency_is_the_derivative_along_the_embedding_of_each_token(case):
  run, example, prediction = looked(case)
  result = saliency(example, prediction)
  for side, ids in example.ids.items():
    embeddings = np.asarray(HIDDEN(example.model, run.params, example.batch, side)[0])
    for t in {0, len(ids) // 2, len(ids) - 1}:
      ends = []
      for sign in (1, -1):
        shift = np.zeros_like(embeddings)
        shift[0, t] = sign * 1e-2 * embeddings[0, t]
        ends.append(values_of(example, run.params, prediction, {side: shift})[0])
      slopes = (ends[0] - ends[1]) / 2e-2
      assert result.total[side][t] == pytest.approx(slopes.sum(), abs=2e-2, rel=2e-2)
      assert result.each[side][:, t] == pytest.approx(slopes[: len(result.each[side])], abs=1e-2, rel=2e-2)
  assert max(np.abs(x).max() for x in result.total.values()) > 1e-2  # of about the size of the tolerance or more


def test_tokens_after_the_one_that_is_predicted_have_no_saliency():
  run, texts = run_of("target")
  example = read(run, *texts)
  each = saliency(example, predict(example)).each["decoder"]
  assert len(each) == each.shape[1] > 2
  assert (np.triu(each, 1) == 0).all() and (np.abs(np.diag(each)) > 0).all()


@cases("masks", "next token", "target", "tags")
def test_ablation_is_the_model_with_zeros_for_the_rows_of_a_head(case):
  run, example, prediction = looked(case)
  before, numbers = values_of(example, run.params, prediction)
  result = ablate(example, prediction)
  assert set(result) == ({"encoder", "decoder", "cross"} if run.model.encoder_decoder else {""})
  for stack, one in result.items():
    n, h = one.change.shape[0] - 1, 2
    params = jax.tree.map(np.array, run.params)
    functools.reduce(dict.get, STACKS[stack].split("/"), params)[n, h] = 0.0
    after, changed = values_of(example, params, prediction)
    assert one.change[n, h] == pytest.approx((after - before).sum(), abs=1e-4)
    places = [t.place for t in prediction.targets]
    assert one.flips[n, h] == (changed[places].argmax(-1) != numbers[places].argmax(-1)).sum()


class Silent(Attention):
  """Attention that says nothing in layer 1 beyond its bias."""

  def __call__(self, x_BTD, layer, ctx, kept=None):
    y, new, weights = super().__call__(x_BTD, layer, ctx, kept)
    bias = self.get_variable("params", "bo")
    return jnp.where(layer == 1, jnp.broadcast_to(bias, y.shape), y), new, weights


def test_a_layer_without_all_of_its_heads_is_one_without_attention(monkeypatch):
  run = make_run("bert")
  example = read(run, MASKED)
  params = without_heads(run.params, "", 1, range(4))
  expected = LOGITS(example.model, params, example.batch)
  assert np.abs(LOGITS(example.model, run.params, example.batch) - expected).max() > 0.1
  monkeypatch.setitem(FAMILIES, "bert", dataclasses.replace(bert.FAMILY, attention=Silent))
  silent = jax.jit(example.model.logits)(run.params, example.batch)
  np.testing.assert_allclose(silent, expected, atol=1e-5)


@cases("masks", "next token", "target", "tags", "classes", "value", "answer", "replaced")
def test_the_prediction_is_that_of_the_model(case):
  run, example, prediction = looked(case)
  expected = PREDICT(run.model, run.params, example.batch)
  head = run.model.config.head
  numbers, targets = prediction.log_probs, prediction.targets
  if head.name == "lm":
    np.testing.assert_array_equal(numbers.argmax(-1), expected["tokens"][0])
  elif case == "value":
    assert targets[0].best == [("0", pytest.approx(float(expected["value"][0]), abs=1e-5))]
  elif head.name == "sequence_classification":
    assert targets[0].name == head.labels.split("|")[int(expected["class"][0])]
    probabilities = dict(zip(head.labels.split("|"), expected["probabilities"][0].tolist(), strict=True))
    assert dict(targets[0].best) == pytest.approx(probabilities, abs=1e-5)
  elif head.name == "token_classification":
    np.testing.assert_array_equal(numbers.argmax(-1), expected["classes"][0])
  elif head.name == "question_answering":
    start, end = (int(expected[name][0]) for name in ("start", "end"))
    assert [t.choice for t in targets] == [start, end]
    assert prediction.answer == run.tokenizer.decode(example.ids[""][start : end + 1]).strip()
  else:
    np.testing.assert_array_equal(numbers.argmax(-1).astype(bool), expected["replaced"][0])
  np.testing.assert_allclose(prediction.values, values_of(example, run.params, prediction)[0], atol=1e-4)
  assert len(str(prediction).splitlines()) == len(targets) + bool(prediction.answer)


def test_masks_are_filled_as_by_fill_mask():
  run = make_run("bert")
  for target, guesses in zip(predict(read(run, MASKED)).targets, run.fill_mask(MASKED), strict=True):
    assert [name for name, _ in target.best] == [name for name, _ in guesses]
    assert [p for _, p in target.best] == pytest.approx([p for _, p in guesses], rel=1e-4)


def test_what_a_decoder_writes_is_its_likeliest_token_each_time():
  run, texts = run_of("written")
  example = read(run, *texts)
  numbers = predict(example).log_probs
  np.testing.assert_array_equal(numbers.argmax(-1), example.targets)
  assert example.ids["decoder"][0] == run.tokenizer.bos_id
  np.testing.assert_array_equal(example.ids["decoder"][1:], example.targets[:-1])


def test_a_pair_is_read_as_in_training():
  run, texts = run_of("classes")
  example = read(run, *texts)
  t = run.tokenizer
  first, second = t.encode(TEXT), t.encode(PAIR)
  np.testing.assert_array_equal(example.ids[""], [t.bos_id, *first, t.eos_id, *second, t.eos_id])
  np.testing.assert_array_equal(example.batch["token_types"][0], [0] * (len(first) + 2) + [1] * (len(second) + 1))


def test_a_sharded_model_shows_the_same():
  run = make_run("bert")
  st = tiny_models.placement("fsdp", 8)
  one = look(run, MASKED)
  other = look(dataclasses.replace(run, model=dataclasses.replace(run.model, placement=st)), MASKED)
  np.testing.assert_allclose(one.attention[""], other.attention[""], atol=1e-5)
  np.testing.assert_allclose(one.saliency.total[""], other.saliency.total[""], atol=1e-4)
  np.testing.assert_allclose(one.ablation[""].change, other.ablation[""].change, atol=1e-4)


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


def command(*arguments):
  line = [sys.executable, "-m", "tfm_jax.tasks.attention", *arguments]
  return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("attention")
  config = tiny(write_experiment(folder / "experiment"), "bert", train__steps=2, eval__batches=1)
  quick_fit(config, folder / "run")
  return folder / "run"


def test_the_command_writes_the_page(workdir, tmp_path):
  out = tmp_path / "page.html"
  done = command(f"--workdir={workdir}", "--text=the [MASK]at", f"--out={out}", "--layers=0,1")
  assert done.returncode == 0, done.stderr
  assert "mask at 5: " in done.stdout and f"written: {out}" in done.stdout
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
  from tfm_jax.tasks import attention

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
