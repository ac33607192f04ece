"""The benchmarks end to end on the smallest model, and their rules on given numbers. No test looks at a time."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import output
from benchmarks.fit import exponent, local_exponents
from benchmarks.train import sides
from benchmarks.train.cases import CASES
from benchmarks.train.load import LIMIT, Snapshot, others_share
from benchmarks.train.results import TOLERANCE, agreement, ratio, summary
from benchmarks.train.rounds import ATTEMPTS, Block, kept, rotated, run_rounds
from tests.support.launching import ROOT, environment, write_text
from tests.support.peers import peer_python
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags
from tfm_jax.training.config import load, resolve

QUICK = ("--blocks=2", "--steps=3", "--wait=0")


def train(out: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
  """`python -m benchmarks.train` on a small text, run to its end."""
  text = write_text(out.with_suffix(".txt"))
  command = [sys.executable, "-m", "benchmarks.train", f"--out={out}", f"--config.data.path={text}", *arguments]
  return subprocess.run(command, cwd=ROOT, env=environment() | (env or {}), capture_output=True, text=True, timeout=900)


def only_case(out: Path) -> dict:
  (case,) = json.loads((out / "results.json").read_text())["cases"]
  return case


def check_case(case: dict, names: list[str], blocks: int, steps: int) -> None:
  """What every result must have, and how its figures hang together."""
  assert list(case["sides"]) == names
  assert case["tokens_per_step"] == case["rows"] * case["row_tokens"]
  assert 0 < case["useful_tokens_per_step"] <= case["tokens_per_step"]
  for name, side in case["sides"].items():
    assert case["agreement"][name]["largest"] <= max(case["agreement"][name]["limits"])
    for figure in ("step_seconds", "useful_tokens_per_second"):
      assert side[figure]["low"] <= side[figure]["median"] <= side[figure]["high"], (name, figure)
    assert side["memory"]["peak_bytes"] > 0 and side["compile_seconds"] >= 0
    assert side["parameters"] == case["parameters"]
    assert side["versions"] and side["flags"]["dtype"] == side["dtype"]
    own = [block for block in case["blocks"] if block["side"] == name]
    assert sum(block["kept"] for block in own) == blocks
    assert all(len(block["seconds"]) == steps for block in own)
    if name != "ours":
      faster = side["ours_is_faster_by"]
      assert faster["low"] <= faster["median"] <= faster["high"]


@pytest.mark.slow
def test_this_package_against_itself(tmp_path):
  """The same program twice: the losses are equal, and everything that is promised is written."""
  out = tmp_path / "out"
  done = train(out, "--against=ours", "--cases=tiny", "--check=4", "--dtype=float32", *QUICK)
  assert done.returncode == 0, done.stderr
  results, case = json.loads((out / "results.json").read_text()), only_case(out)
  check_case(case, ["ours", "ours-again"], blocks=2, steps=3)
  assert case["agreement"]["ours-again"]["largest"] == 0
  assert [block["side"] for block in case["blocks"] if block["kept"]] == ["ours", "ours-again", "ours-again", "ours"]
  assert {"revision", "processor", "cores", "memory_bytes", "environment", "backend"} <= results["machine"].keys()
  page = (out / "report.html").read_text()
  assert "<svg" in page and "ours-again" in page and "src=" not in page
  assert "round 2/2" in done.stdout and "useful tokens/s" in done.stdout
  assert not list(out.glob(".tiny-*")), "weights and batches are left behind"


@pytest.mark.parametrize("name", CASES)
def test_cases_are_valid_configurations(name):
  config = resolve(load(CASES[name].config, CASES[name].overrides))
  assert config.model.dropout == config.model.attention_dropout == 0 and config.loss.z_loss == 0


# Errors.


def test_without_the_peers_interpreter_one_line_says_how_to_get_it(tmp_path):
  done = train(tmp_path / "out", "--cases=tiny", env={"TFM_PEERS_PYTHON": str(tmp_path / "no" / "python")})
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert "make .venv-peers/.installed" in line and "TFM_PEERS_PYTHON" in line


def test_the_peers_environment_is_found_by_itself(tmp_path, monkeypatch):
  monkeypatch.delenv("TFM_PEERS_PYTHON", raising=False)
  python = tmp_path / "python"
  monkeypatch.setattr(sides, "PEERS_PYTHON", python)
  monkeypatch.setattr(sides.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"make \.venv-peers/\.installed"):
    sides.peer_python()
  python.touch()
  assert sides.peer_python() == str(python)


def test_wrong_flags_are_one_line(tmp_path):
  for flag, message in {
    "--cases=gtp2": "did you mean gpt2",
    "--against=torch": "is not one of ours, transformers, pytorch",
    "--blocks=0": "at least 1",
    "--dtype=float16": "is not float32 or bfloat16",
  }.items():
    done = train(tmp_path / "out", "--against=none", flag)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2  # one more tells that --against is given twice


def test_peers_are_chosen_by_group_and_name():
  assert sides.choose_sides(["none"], []) == ["ours"]
  assert sides.choose_sides(["transformers"], []) == ["ours", "transformers", "transformers-tuned"]
  assert sides.choose_sides(["transformers", "pytorch"], ["pytorch"]) == ["ours", "pytorch"]
  with pytest.raises(UserError, match="is not one of transformers, transformers-tuned"):
    sides.choose_sides(["transformers"], ["pytorch"])
  with pytest.raises(UserError, match="at least 2"):
    output.count_of(Flags({"sizes": "1"}, {}), "sizes", 4, 2)


# Rules, on given numbers.


def test_the_order_of_sides_rotates():
  assert [rotated("ABC", n) for n in range(4)] == [list("ABC"), list("BCA"), list("CAB"), list("ABC")]


def test_a_disturbed_block_is_run_again_until_it_is_clean():
  others = {"a": iter([0.2, 0.01, 0.0]), "b": iter([0.05, 0.06, 0.04])}
  blocks = run_rounds(["a", "b"], 2, lambda side: ([1.0, 3.0], next(others[side])))
  told = [(block.side, block.round, block.attempt, block.kept) for block in blocks]
  assert told == [
    ("a", 0, 1, False),
    ("a", 0, 2, True),
    ("b", 0, 1, True),
    ("b", 1, 1, False),
    ("b", 1, 2, True),
    ("a", 1, 1, True),
  ]
  assert summary(blocks, "a", 10)["discarded_blocks"] == 1 and summary(blocks, "a", 10)["disturbed_blocks"] == 0
  assert summary(blocks, "a", 10)["useful_tokens_per_second"] == {"median": 5.0, "low": 5.0, "high": 5.0}


def test_after_the_last_attempt_a_disturbed_block_is_kept_but_counts_only_if_there_is_no_other():
  noise = iter([0.5] * ATTEMPTS + [0.0])
  seconds = iter([9.0] * ATTEMPTS + [1.0])
  blocks = run_rounds(["a"], 2, lambda side: ([next(seconds)], next(noise)))
  assert len(blocks) == ATTEMPTS + 1
  assert list(kept(blocks, "a")) == [1] and summary(blocks, "a", 1)["step_seconds"]["median"] == 1.0
  assert summary(blocks, "a", 1)["disturbed_blocks"] == 1
  assert list(kept(blocks[:ATTEMPTS], "a")) == [0]


def test_ratios_pair_blocks_of_the_same_round():
  seconds = {("ours", 0): 1.0, ("ours", 1): 10.0, ("peer", 0): 2.0, ("peer", 1): 30.0}
  blocks = [Block(side, number, 1, [x], 0.0, True) for (side, number), x in seconds.items()]
  assert ratio(blocks, "peer") == {"median": 2.5, "low": 2.0, "high": 3.0}
  noisy = {("ours", 0), ("peer", 1)}  # no round is clean for both
  blocks = [dataclasses.replace(b, others=0.5 if (b.side, b.round) in noisy else 0.0) for b in blocks]
  assert ratio(blocks, "peer") == {"median": 2.5, "low": 2.0, "high": 3.0}


def test_what_others_use_is_all_that_is_busy_without_the_measured_process():
  before, after = Snapshot(busy=100, total=200, own=50), Snapshot(busy=118, total=220, own=66)
  assert others_share(before, after) == pytest.approx(0.1) and LIMIT < 0.1
  assert others_share(before, after._replace(own=70)) == 0
  assert others_share(None, after) is None


def test_losses_agree_within_the_tolerance_of_each_step():
  ours = [4.0, 2.0]
  assert agreement(ours, [4.0, 2.0 * (1 + TOLERANCE / 2)])["agrees"]
  assert not agreement(ours, [4.0, 2.0 * (1 + TOLERANCE * 2)])["agrees"]


def test_losses_may_differ_by_what_rounding_alone_has_moved_ours():
  ours, rounded = [4.0, 2.0, 2.0], [4.0, 2.02, 2.0]
  assert agreement(ours, [4.0, 2.05, 2.05], rounded)["agrees"]  # three times 1 %, also after that step
  assert not agreement(ours, [4.0, 2.07, 2.0], rounded)["agrees"]
  assert not agreement(ours, [4.01, 2.0, 2.0], rounded)["agrees"]  # before it


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_law_is_found(power):
  sizes = [1, 2, 4, 8]
  costs = [3 * size**power for size in sizes]
  assert exponent(sizes, costs) == pytest.approx(power, abs=1e-12)
  assert local_exponents(sizes, costs) == pytest.approx([power] * 3, abs=1e-12)


def test_the_exponent_of_one_size_is_not_a_number():
  assert math.isnan(exponent([4], [1.0]))


# Peers, live.

TINY = {
  "bert": (),
  "gpt2": (),
  "t5": ("--config.data.target_len=8", "--config.model.head_dim=8"),
}
SMALLEST = ("num_layers=2", "embed_dim=32", "num_heads=4", "mlp_dim=64", "vocab_size=400")


@pytest.mark.peers
@pytest.mark.skipif(peer_python() is None, reason="no torch and transformers: set TFM_PEERS_PYTHON")
@pytest.mark.parametrize("name", TINY)
def test_losses_of_the_peers_agree_with_ours(name, tmp_path):
  out = tmp_path / "out"
  model = [f"--config.model.{change}" for change in SMALLEST]
  data = ["--config.tokenizer.kind=byte", "--config.data.seq_len=32", "--config.train.batch_size=4"]
  python = {"TFM_PEERS_PYTHON": str(peer_python())}
  arguments = ("--against=transformers,pytorch", f"--cases={name}", "--check=20", "--dtype=float32", *QUICK)
  done = train(out, *arguments, *model, *data, *TINY[name], env=python)
  assert done.returncode == 0, done.stderr
  names = ["ours", "transformers", "transformers-tuned", *(["pytorch", "pytorch-eager"] if name == "gpt2" else [])]
  check_case(only_case(out), names, blocks=2, steps=3)


@pytest.mark.slow
def test_the_memory_of_a_preparation_is_measured():
  command = [sys.executable, "benchmarks/preparation.py", "--megabytes=2", "--kind=byte"]
  done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  match = re.fullmatch(r"2 MB: \d+ s, largest memory (\d+) MB", done.stdout.splitlines()[-1])
  assert match and 50 < int(match[1]) < 2000
