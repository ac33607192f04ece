"""Generates text with a trained model: python -m tfm_jax.decode --workdir=RUN --prompt="Once upon a time"

--workdir=RUN              the run directory
--prompt="..."             the prompt, of an encoder-decoder what its encoder reads; the text appears as it is generated
--file=FILE                prompts, one per line (\\n within a line stands for a new line)
--out=FILE                 JSON lines, one per prompt and in order: prompt, text, ids, logprob (nats), end; the same
                           command goes on where it was stopped. Without it the lines are printed
--chat                     a conversation: answers each line of the terminal or a pipe; /reset forgets what was said,
                           /exit ends it, Ctrl-C ends an answer. --system="..." is said before it. The default of
                           --max_new_tokens is 512 here
--max_new_tokens=128       most tokens of a text; --min_new_tokens=0: the least
--temperature=0            0: the likeliest token at each step; higher: tokens are drawn, the more freely the higher
--top_k=0 --top_p=1 --min_p=0 --typical_p=1      which tokens may be drawn
--repetition_penalty=1 --presence_penalty=0 --frequency_penalty=0 --no_repeat_ngram=0      against repeats
--bad_words="a|b"          strings that are never generated
--prefix="..."             the generated text begins with it
--stop="a|b"               strings, or names of special tokens, that end the text
--beams=1                  beam search; also --length_penalty=1 --beam_groups=1 --diversity=0
--penalty_alpha=0.6 --top_k=4  contrastive search: of the top_k likeliest tokens, one that is unlike the text so far
--samples=1                texts per prompt
--seed=0                   of what is drawn
--draft=RUN                a smaller model of the same tokenizer drafts --draft_tokens=4 at once: the same text, faster
--choices="yes|no"         instead of generating: how likely each of these texts is
--fill                     fill the [MASK]s of a masked language model (--top=5 pieces each), or T5's <extra_id_0> ...
--score                    the log-likelihood of the prompt, or of the text in "prompt<TAB>text"; with --out=PAGE.html
                           each token on the colour of its surprisal, with the --top=5 expected ones (also of encoders)
--batch_size=16            most texts at once
--context=0                the most tokens that each one reads, itself included, for texts that are longer than the rows
                           of training; of decoders with rotary or relative positions; 0: all
--cache_dtype=int8         of the cached keys and values; or bfloat16, float32; default: as computed
--dtype=float32            the compute dtype; default: the run's. --step=N: which checkpoint
--strategy=NAME            shard the parameters over all devices by this strategy; default: one device
"""

import sys

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

OPTIONS = (
  *("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p"),
  *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram", "bad_words", "stop", "prefix"),
  *("beams", "beam_groups", "diversity", "length_penalty", "penalty_alpha"),
  *("samples", "seed", "context", "cache_dtype", "batch_size"),
)
FLAGS = (
  *(
    "workdir",
    "prompt",
    "file",
    "out",
    "draft",
    "draft_tokens",
    "choices",
    "top",
    "system",
    "dtype",
    "step",
    "strategy",
  ),
  *OPTIONS,
)
SWITCHES = ("chat", "fill", "score")


def main(flags: Flags) -> None:
  """The command."""
  if flags.overrides:
    raise UserError(f"--config.{next(iter(flags.overrides))} does not apply here: the run has its configuration")
  flags.require("workdir")
  if sum(name in flags.values for name in ("prompt", "file", "chat")) != 1:
    raise UserError("give one of --prompt=..., --file=... and --chat (--help lists the flags)")
  from tfm_jax.decode.command import decode
  from tfm_jax.training.load import load_run

  decode(flags.values, load_run)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, switches=SWITCHES))
