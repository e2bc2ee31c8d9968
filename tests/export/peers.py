"""transformers' models with random weights, to compare with: tests that need it are skipped where
it is not installed."""

import functools

import jax
import numpy as np

from plm_jax.export import hf


@functools.cache
def initializer(config, heads):
  return jax.jit(lambda key: config.init(key, dict(heads)))


def initial(config, heads, seed=0):
  """Random parameters, made by one program: else every operation is compiled on its own."""
  return initializer(config, tuple(heads.items()))(jax.random.key(seed))


def published(transformers, architecture, folder, seed=0, **options):
  """A model of transformers with random weights of every kind, saved in `folder`."""
  import torch

  kind = getattr(transformers, architecture)
  torch.manual_seed(seed)
  model = kind(kind.config_class(**options))
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model.eval()


def outputs(model, inputs):
  """transformers' outputs that are arrays."""
  import torch

  with torch.no_grad():
    found = model(**{name: torch.tensor(array) for name, array in inputs.items()})
  return {name: x.numpy() for name, x in found.items() if isinstance(x, torch.Tensor)}


def padded_rows(rng, vocab, pad, length=11, rows=4):
  """Ids and mask: a full row, one padded right, one left, one on both sides."""
  mask = np.ones((rows, length), int)
  mask[1, length - 3 :] = mask[2, :2] = mask[3, :1] = mask[3, length - 2 :] = 0
  ids = rng.integers(4, vocab, (rows, length))
  return np.where(mask == 1, ids, pad), mask


def difference(ours, theirs, mask):
  """The largest absolute one at real positions, over all outputs; both must have the same."""
  assert sorted(ours) == sorted(theirs)
  largest = 0.0
  for name, array in ours.items():
    assert array.shape == theirs[name].shape and array.dtype == np.float32
    gap = np.abs(array - theirs[name])
    if array.shape[:2] == mask.shape:
      gap = gap[mask == 1]
    largest = max(largest, gap.max())
  return largest


def assert_round_trip(transformers, model, reference, inputs, folder):
  """Saved and loaded again: bit-equal here, and in transformers silent with the same outputs."""
  hf.save(model, folder)
  again = hf.load(folder)
  assert again.config == model.config and again.architecture == model.architecture
  for one, other in zip(jax.tree.leaves(model.params), jax.tree.leaves(again.params)):
    np.testing.assert_array_equal(one, other)
  kind = getattr(transformers, model.architecture)
  theirs, report = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(report.values()), report
  before, after = outputs(reference, inputs), outputs(theirs.eval(), inputs)
  for name in before:
    np.testing.assert_array_equal(before[name], after[name])
