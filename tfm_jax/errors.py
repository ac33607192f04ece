"""Mistakes a user can make: each is one line that names the culprit and the remedy."""

import errno


class UserError(Exception):
  """Shown without a traceback as one line on stderr; the process ends with exit status 2."""


def disk_is_full(error: OSError) -> bool:
  """Whether writing failed for want of space: of the disk, of a quota, or of what a file may take."""
  return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
