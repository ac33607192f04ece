"""Blocks of steps in rotated order, each repeated while other processes disturb it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from benchmarks.train.load import is_clean

ATTEMPTS = 4  # most tries at one block; the last one is kept, and marked, if all were disturbed


@dataclasses.dataclass(frozen=True)
class Block:
  """One measured block.

  Attributes:
    side: who ran.
    round: the number of the round.
    attempt: 1, or more if earlier tries were disturbed.
    seconds: of each step.
    others: the share of the cores that other processes used; None: not known.
    kept: whether it is the one of its side and round that counts.
  """

  side: str
  round: int
  attempt: int
  seconds: list[float]
  others: float | None
  kept: bool

  @property
  def clean(self) -> bool:
    """Whether others left it alone."""
    return is_clean(self.others)

  @property
  def step_seconds(self) -> float:
    """Mean seconds per step."""
    return sum(self.seconds) / len(self.seconds)


def rotated(sides: Sequence[str], number: int) -> list[str]:
  """The order of a round: A B C, then B C A, then C A B."""
  first = number % len(sides)
  return [*sides[first:], *sides[:first]]


def run_rounds(
  sides: Sequence[str],
  rounds: int,
  measure: Callable[[str], tuple[list[float], float | None]],
  tell: Callable[[Block], None] = lambda block: None,
  pause: Callable[[], None] = lambda: None,
) -> list[Block]:
  """Runs `rounds` blocks of each side.

  Args:
    sides: who takes part.
    rounds: blocks of each side that are kept.
    measure: side -> (seconds of each step, share of the cores that others used).
    tell: is called after each block.
    pause: is called before a block is run again.

  Returns:
    All blocks in the order in which they ran, also those that are not kept.
  """
  blocks = []
  for number in range(rounds):
    for side in rotated(sides, number):
      for attempt in range(1, ATTEMPTS + 1):
        seconds, others = measure(side)
        kept = is_clean(others) or attempt == ATTEMPTS
        blocks.append(Block(side, number, attempt, seconds, others, kept))
        tell(blocks[-1])
        if kept:
          break
        pause()
  return blocks


def kept(blocks: Sequence[Block], side: str) -> Mapping[int, Block]:
  """Round -> the block of a side that counts. Disturbed ones are left out unless there is no other."""
  own = {block.round: block for block in blocks if block.side == side and block.kept}
  return {number: block for number, block in own.items() if block.clean} or own
