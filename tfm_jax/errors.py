"""Mistakes a user can make: each is one line that names the culprit and the remedy."""


class UserError(Exception):
  """Shown without a traceback as one line on stderr; the process ends with exit status 2."""
