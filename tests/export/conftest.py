"""The peer that published models are compared with."""

import pytest


@pytest.fixture(scope="session")
def peers():
  """The module transformers, quiet."""
  transformers = pytest.importorskip("transformers")
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  return transformers
