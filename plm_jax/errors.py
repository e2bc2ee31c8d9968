"""The one exception for a mistake of the user's."""


class UserError(Exception):
  """A mistake the user can mend, in one sentence: what was given, what was expected, what to do.

  Commands print the sentence and leave with exit code 2 (`plm_jax.cli`); nothing else catches it.
  """
