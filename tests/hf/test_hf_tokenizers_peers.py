"""Tokenizers against transformers itself: equal ids on real text, and files that it loads without a warning."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import tokenizers as library
from etils import epath

from tests.support.chat_templates import CONVERSATION, WRITTEN
from tests.support.hf_tokenizer_cases import (
  CORPORA,
  LICENSE,
  MODEL_TYPES,
  ODD,
  OTHERS,
  TOKENIZERS,
  TRAINING,
  our_ids,
  plain,
  same,
  t5_model,
  trained,
)
from tests.support.peers import peer_python
from tests.support.plain_tokenizers import data_folder, put, real_lines
from tests.text.test_tokenizer_json import MADE, SAID, TEXTS
from tfm_jax.hf.tokenizer import read_tokenizer, write_tokenizer
from tfm_jax.text.tokenizers.chat import Form
from tfm_jax.text.tokenizers.pretrained import from_files
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path

ASK = """
import json, sys, warnings
warnings.simplefilter("error")
import transformers
with open(sys.argv[1]) as file:
  question = json.load(file)
answers = {}
for name, (folder, kind) in question["folders"].items():
  t = getattr(transformers, kind).from_pretrained(folder)
  ids = [t(text, add_special_tokens=False)["input_ids"] for text in question["texts"]]
  answers[name] = {"ids": ids, "one": t("a")["input_ids"], "size": len(t)}
  answers[name] |= {"keys": sorted(t("a")), "most": t.model_max_length, "special": t.special_tokens_map}
  answers[name] |= {"decoded": [t.decode(row) for row in ids[:20]], "sentinels": t.convert_tokens_to_ids(SENTINELS)}
  if t.chat_template:
    write = lambda **form: t.apply_chat_template(question["chat"], add_generation_prompt=True, **form)
    answers[name]["chat"] = [write(tokenize=False), write(tokenize=True, return_dict=False)]
  if question["save"]:
    t.save_pretrained(question["save"] + "/" + name)
with open(sys.argv[2], "w") as file:
  json.dump(answers, file)
""".replace("SENTINELS", repr([f"<extra_id_{n}>" for n in range(3)]))


def ask(folders: dict[str, tuple[Path, str]], texts: list[str], tmp_path: Path, save: Path | None = None) -> dict:
  """What transformers makes of the folders; a warning is an error."""
  python = peer_python()
  assert python
  named = {name: (str(folder), kind) for name, (folder, kind) in folders.items()}
  question, answer = tmp_path / "question.json", tmp_path / "answer.json"
  question.write_text(json.dumps({"folders": named, "texts": texts, "save": str(save or ""), "chat": CONVERSATION}))
  (tmp_path / "ask.py").write_text(ASK)
  environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
  result = subprocess.run(
    [python, tmp_path / "ask.py", question, answer], capture_output=True, text=True, env=environment
  )
  assert (result.returncode, result.stderr) == (0, "")
  return json.loads(answer.read_text())


@pytest.fixture
def peer() -> None:
  if peer_python() is None:
    pytest.skip("no transformers: TFM_PEERS_PYTHON names no interpreter that has it")


@pytest.mark.peers
def test_published_vocabularies_as_in_transformers(peer, tmp_path):
  vocab = data_folder() / "vocab"
  folders: dict[str, tuple[Path, str]] = {}

  def folder(name: str, kind: str, config: dict, files: dict[str, bytes]) -> None:
    (tmp_path / name).mkdir()
    put(tmp_path / name, tokenizer_config__json={"model_max_length": 10**9, **config})
    for file, data in files.items():
      (tmp_path / name / file).write_bytes(data)
    folders[name] = tmp_path / name, kind

  uncased, chinese = ((vocab / f"bert-base-{name}" / "vocab.txt").read_bytes() for name in ("uncased", "chinese"))
  gpt2 = {"vocab.json": (vocab / "gpt2" / "encoder.json").read_bytes()}
  gpt2["merges.txt"] = (vocab / "gpt2" / "vocab.bpe").read_bytes()
  folder("uncased", "BertTokenizer", {}, {"vocab.txt": uncased})
  folder("chinese", "BertTokenizer", {"do_lower_case": False}, {"vocab.txt": chinese})
  folder("chinese lower", "BertTokenizer", {"tokenize_chinese_chars": False}, {"vocab.txt": chinese})
  folder("gpt2", "GPT2Tokenizer", {}, gpt2)
  folder("gpt2 prefix", "GPT2Tokenizer", {"add_prefix_space": True}, gpt2)
  folder("t5", "T5Tokenizer", {"tokenizer_class": "T5Tokenizer"}, {"spiece.model": t5_model()})
  lines = ["Paris is the [MASK] of France.", "[SEP] a[CLS]b", "a<|endoftext|> b", "<|endoftext|>"]
  lines += ["The <extra_id_0> walks in <extra_id_1> park</s>", "<extra_id_0>x <extra_id_99>", "a <unk> <pad>"]
  lines += [line for file in CORPORA for line in real_lines(file)]
  answers = ask(folders, lines, tmp_path, save=tmp_path / "saved")
  for name, (path, _) in folders.items():
    # Bare files, and those that transformers writes: a tokenizer.json, of T5 too.
    for source in (path, tmp_path / "saved" / name):
      tokenizer = read_tokenizer(source)
      ids = our_ids(tokenizer, lines)
      wrong = sum(ours != theirs for ours, theirs in zip(ids, answers[name]["ids"], strict=True))
      print(f"{name} from {source.parent.name}: {len(ids)} lines, {sum(map(len, ids))} tokens, {wrong} lines differ")
      assert wrong == 0
      assert tokenizer.vocab_size == answers[name]["size"]
      if name == "t5":
        assert answers[name]["sentinels"] == tokenizer.sentinel_ids[:3].tolist() == [32099, 32098, 32097]


@pytest.mark.peers
def test_byt5_as_in_transformers(peer, tmp_path):
  write_tokenizer(TOKENIZERS["byt5"], tmp_path / "ours", "t5", 10**9)
  put(tmp_path / "ours", config__json={"model_type": "t5"})
  texts = [*ODD, "The <extra_id_0> walks in <extra_id_1>park", "x</s>"]
  answer = ask({"byt5": (tmp_path / "ours", "AutoTokenizer")}, texts, tmp_path, save=tmp_path / "saved")["byt5"]
  assert answer["ids"] == our_ids(read_tokenizer(tmp_path / "ours"), texts)
  assert (answer["one"], answer["size"], answer["sentinels"]) == ([100, 1], 384, [259, 260, 261])
  same(TOKENIZERS["byt5"], read_tokenizer(tmp_path / "saved" / "byt5"))


@pytest.mark.peers
def test_auto_tokenizer_on_what_we_write(peer, tmp_path):
  made = dict(TOKENIZERS)
  texts = [*ODD, *LICENSE.split("\n\n"), "a ▁ b"]
  if os.environ.get("TFM_DATA_DIR"):
    vocab = data_folder() / "vocab"
    made["published bert"] = from_files(epath.Path(vocab / "bert-base-uncased"))
    made["published gpt2"] = from_files(epath.Path(vocab / "gpt2"))
    made["published t5"] = SentencePieceTokenizer(t5_model(), 100)
    texts += [line for file in CORPORA for line in real_lines(file)[:300]]
  texts = plain(texts)
  folders = {}
  # Of large vocabularies of a Mistral, transformers says that their pattern is wrong.
  large = tmp_path / "large"
  large.mkdir()
  letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
  tokens = [*letters, *(f"<unused{n}>" for n in range(100_000))]
  put(large, vocab__json={token: id for id, token in enumerate(tokens)}, merges__txt=b"")
  made["large"] = from_files(epath.Path(large))
  for name, tokenizer in made.items():
    for model_type in MODEL_TYPES if name != "large" else ["mistral"]:
      folder = tmp_path / f"{name}-{model_type}"
      write_tokenizer(tokenizer, folder, model_type, 100_000)
      put(folder, config__json={"model_type": model_type})
      folders[folder.name] = folder, "AutoTokenizer"
  answers = ask(folders, texts, tmp_path)
  wanted = {name: our_ids(tokenizer, texts) for name, tokenizer in made.items()}
  for key, answer in answers.items():
    name, model_type = key.rsplit("-", 1)
    tokenizer = made[name]
    assert answer["ids"] == wanted[name], key
    assert (answer["size"], answer["most"]) == (tokenizer.vocab_size, 100_000)
    if tokenizer.kind in ("sentencepiece", "gpt2", "byte") and name not in ("published t5", "large"):
      assert answer["decoded"] == texts[:20], key
    assert ("token_type_ids" in answer["keys"]) == (model_type in ("bert", "electra"))
    count = min(3, len(tokenizer.sentinel_ids))
    assert answer["sentinels"][:count] == tokenizer.sentinel_ids[:count].tolist()
    ids = [tokenizer.encode(text).tolist() for text in ("a", "b")]
    bos = [tokenizer.bos_id] * (tokenizer.bos_id >= 0)
    around = {"gpt2": ([], []), "qwen2": ([], []), "t5": ([], [tokenizer.eos_id])}
    around |= {"llama": (bos, []), "mistral": (bos, [])}
    before, behind = around.get(model_type, (bos, [tokenizer.eos_id]))
    assert answer["one"] == before + ids[0] + behind, key
    if "mask_token" in answer["special"]:
      assert answer["special"]["mask_token"] == tokenizer.token(tokenizer.mask_id)
  tokens = sum(len(ids) for answer in answers.values() for ids in answer["ids"])
  print(f"{len(answers)} exports, {len(texts)} texts each, {tokens} tokens, no difference")


@pytest.mark.peers
def test_tokenizers_of_others_as_in_transformers(peer, tmp_path):
  """Byte-level files of RoBERTa, Llama 3, Qwen 2 and ModernBERT, and sentencepiece files of Llama 2, in small."""
  alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())

  def byte_level(pattern: str | None, special: list[str], **parts) -> dict:
    made = library.Tokenizer(library.models.BPE())
    level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [library.pre_tokenizers.Split(library.Regex(pattern), "isolated")] if pattern else []
    made.pre_tokenizer = library.pre_tokenizers.Sequence([*split, level])
    trainer = library.trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TRAINING, trainer)
    made.decoder = library.decoders.ByteLevel()
    made.add_special_tokens(special)
    return json.loads(made.to_str()) | parts

  qwen = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  )
  llama = qwen.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
  cases = {
    "llama": (
      byte_level(llama, ["<|begin_of_text|>", "<|end_of_text|>"]),
      {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "qwen2": (
      byte_level(qwen, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer={"type": "NFC"}),
      {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "modernbert": (
      byte_level(None, ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], normalizer={"type": "NFC"}),
      {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    ),
  }
  bert = json.loads(TOKENIZERS["wordpiece"].model)
  for name, owner in (("bert", "BertTokenizer"), ("distilbert", "PreTrainedTokenizerFast")):
    cases[name] = bert, {"tokenizer_class": owner, "do_lower_case": False, "unk_token": "[UNK]"}
  folders = {}
  for name, (content, config) in cases.items():
    (tmp_path / name).mkdir()
    put(tmp_path / name, tokenizer__json=content, tokenizer_config__json=config, config__json={"model_type": name})
    folders[name] = tmp_path / name, "AutoTokenizer"
  model = cases["modernbert"][0]["model"]
  (tmp_path / "roberta").mkdir()
  names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(model["vocab"], key=model["vocab"].__getitem__), "<mask>"]
  merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]).encode()
  put(tmp_path / "roberta", vocab__json={token: id for id, token in enumerate(names)}, merges__txt=merges)
  put(tmp_path / "roberta", config__json={"model_type": "roberta"})
  folders["roberta"] = tmp_path / "roberta", "AutoTokenizer"
  (tmp_path / "llama2").mkdir()
  options = OTHERS["llama style"] | {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
  put(tmp_path / "llama2", tokenizer__model=trained(**options), config__json={"model_type": "llama"})
  put(tmp_path / "llama2", tokenizer_config__json={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
  folders["llama2"] = tmp_path / "llama2", "AutoTokenizer"
  texts = [text for text in (*ODD, *LICENSE.split("\n")) if text and text == text.lstrip(" ")]
  answers = ask(folders, texts, tmp_path, save=tmp_path / "saved")
  again = {}
  for name, (folder, kind) in folders.items():
    for source in (folder, tmp_path / "saved" / name):
      tokenizer = read_tokenizer(source)
      assert from_path(TokenizerConfig(path=str(source))).fingerprint == tokenizer.fingerprint
      assert our_ids(tokenizer, texts) == answers[name]["ids"], (name, source)
    model_type = "llama" if name == "llama2" else name
    write_tokenizer(tokenizer, tmp_path / f"{name} again", model_type, 100)
    put(tmp_path / f"{name} again", config__json={"model_type": model_type})
    again[name] = tmp_path / f"{name} again", kind
  for name, answer in ask(again, texts, tmp_path).items():
    assert answer["ids"] == answers[name]["ids"], name
    assert answer["one"] == answers[name]["one"]  # each tokenizer.json is written as it was read


@pytest.mark.peers
def test_a_tokenizer_json_of_any_kind_as_in_transformers(peer, tmp_path):
  """As it is, with tokens that only the files beside it have, and again after an export."""
  folders = {}
  for name, made in MADE.items():
    for more in (False, True):
      folder = tmp_path / f"{name} {more}"
      folder.mkdir()
      config = {**SAID[name][0], "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**9}
      if more:
        row = {"content": "<row>", "special": False, "lstrip": True, "rstrip": False, "normalized": False}
        config["added_tokens_decoder"] = {str(made.get_vocab_size()): {**row, "single_word": False}}
        config |= {"mask_token": "<mask>", "extra_special_tokens": ["<extra>"]}
      put(folder, tokenizer__json=made.to_str(), tokenizer_config__json=config)
      folders[folder.name] = folder, "AutoTokenizer"
  texts = [*TEXTS, "a<mask> <row> b<extra> c"]
  answers, again = ask(folders, texts, tmp_path), {}
  for name, (folder, kind) in folders.items():
    tokenizer = read_tokenizer(folder)
    assert our_ids(tokenizer, texts) == answers[name]["ids"], name
    assert tokenizer.vocab_size == answers[name]["size"]
    write_tokenizer(tokenizer, tmp_path / f"{name} again", "llama", 10**9)
    again[name] = tmp_path / f"{name} again", kind
  for name, answer in ask(again, texts, tmp_path).items():
    assert (answer["ids"], answer["size"]) == (answers[name]["ids"], answers[name]["size"]), name
    if name.endswith("False"):
      assert answer["one"] == answers[name]["one"]


@pytest.mark.peers
def test_conversations_as_in_transformers(peer, tmp_path):
  """As text and as ids, of templates that were exported, and of those that transformers saves."""
  pytest.importorskip("jinja2", reason="pip install -e '.[chat]'")
  folders, ours = {}, {}
  for number, template in enumerate(WRITTEN):
    tokenizer = copy.copy(TOKENIZERS["gpt2"])
    tokenizer.chat_template = template
    write_tokenizer(tokenizer, tmp_path / str(number), "llama", 10**9)
    folders[str(number)] = tmp_path / str(number), "AutoTokenizer"
    ours[str(number)] = Form(tokenizer)
  for name, answer in ask(folders, ["a"], tmp_path, save=tmp_path / "saved").items():
    text = ours[name].text(CONVERSATION)
    assert answer["chat"] == [text, ours[name].encode(text).tolist()], name
    assert read_tokenizer(tmp_path / "saved" / name).chat_template == ours[name].template
