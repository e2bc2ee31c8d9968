import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout

SHAPE = (8, 4, 128, 128)
SIZE = 8 * 4 * 128 * 128
GENERATORS = ("hash", "threefry")


def noise(generator, seed=0):
  return Noise.create(jax.random.key(seed), generator)


def sigmas(a, b, rate):
  """How many standard deviations the correlation of two masks is away from none."""
  a, b = (np.asarray(x, np.float64).ravel() - (1 - rate) for x in (a, b))
  return abs((a * b).sum()) / (rate * (1 - rate) * np.sqrt(a.size))


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_rate_within_four_sigma(generator, rate):
  keep = np.asarray(noise(generator).keep(SHAPE, rate))
  assert keep.shape == SHAPE and keep.dtype == bool
  assert abs(keep.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / SIZE)
  for axis in range(len(SHAPE)):  # no row or column is special
    others = tuple(i for i in range(len(SHAPE)) if i != axis)
    slices = keep.mean(axis=others)
    sigma = np.sqrt(rate * (1 - rate) * SHAPE[axis] / SIZE)
    assert np.abs(slices - (1 - rate)).max() < 5 * sigma


@pytest.mark.parametrize("generator", GENERATORS)
def test_masks_of_neighbouring_seeds_steps_layers_and_streams_are_uncorrelated(generator):
  run = jax.random.key(7)
  sources = [noise(generator, seed) for seed in (0, 1)]
  steps = [Noise.create(jax.random.fold_in(run, step), generator) for step in (10, 11)]
  layers = [steps[0].fold(layer) for layer in (0, 1, 2)]
  streams = [layers[0].fold(stream) for stream in (0, 1)] + [layers[1].fold(0)]
  masks = [s.keep(SHAPE, 0.1) for s in [*sources, *steps, *layers, *streams]]
  for a, b in itertools.combinations(masks, 2):
    assert sigmas(a, b, 0.1) < 4.5


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_mask_is_uncorrelated_with_itself_at_any_shift(generator):
  keep = np.asarray(noise(generator).keep(SHAPE, 0.1)).ravel()
  for shift in (1, 2, 3, 16, 64, 127, 128, 129, 256, 128 * 128, 4 * 128 * 128):
    assert sigmas(keep[:-shift], keep[shift:], 0.1) < 4.5


@pytest.mark.parametrize("generator", GENERATORS)
def test_rows_columns_and_rectangles_of_a_mask_are_uncorrelated(generator):
  """The hash of an element is a product of two keys: any two rows share the keys of columns."""
  random = np.random.default_rng(0)
  keep = np.asarray(noise(generator).keep((1024, 1024), 0.1), np.float64) - 0.9
  (i, j), (a, b) = random.integers(0, 1024, (2, 2, 300_000))
  apart = (i != a) & (j != b)
  i, j, a, b = i[apart], j[apart], a[apart], b[apart]
  for corners in (((i, j), (i, b)), ((i, j), (a, j)), ((i, j), (i, b), (a, j), (a, b))):
    product = np.prod([keep[corner] for corner in corners], axis=0)
    sigma = 0.09 ** (len(corners) / 2) / np.sqrt(len(i))
    assert abs(product.mean()) < 4.5 * sigma


def test_streams_of_many_small_seeds_do_not_collide():
  seeds = jnp.arange(256, dtype=jnp.uint32)
  folded = jax.vmap(lambda s: jax.vmap(lambda i: Noise(s, "hash").fold(i).seed)(jnp.arange(64)))(
    seeds
  )
  assert len(np.unique(np.asarray(folded))) > 0.999 * folded.size


def test_the_statistics_would_notice_a_poor_generator():
  flat = jnp.arange(SIZE, dtype=jnp.uint32).reshape(SHAPE)
  poor = (flat * jnp.uint32(0x9E3779B9)) >= jnp.uint32(0.1 * 2**32)
  shifted = [sigmas(np.ravel(poor)[:-s], np.ravel(poor)[s:], 0.1) for s in (1, 2, 3)]
  assert max(shifted) > 10


@pytest.mark.parametrize("generator", GENERATORS)
def test_what_is_kept_is_scaled_so_that_the_mean_stays(generator):
  x = jnp.ones((256, 256))
  y = np.asarray(dropout(x, 0.25, noise(generator)))
  assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
  assert abs(y.mean() - 1) < 4 * np.sqrt(0.25 / 0.75 / x.size)
  assert dropout(x.astype(jnp.bfloat16), 0.25, noise(generator)).dtype == jnp.bfloat16


def test_without_noise_or_rate_dropout_is_the_identity():
  x = jnp.arange(6.0)
  assert dropout(x, 0.5, None) is x
  assert dropout(x, 0.0, noise("hash")) is x


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_gradient_uses_the_mask_of_the_forward_pass(generator):
  x = jnp.full((64, 64), 2.0)
  source = noise(generator)
  gradient = jax.grad(lambda x: dropout(x, 0.3, source).sum())(x)
  np.testing.assert_allclose(gradient * 2.0, dropout(x, 0.3, source), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["hash", pytest.param("threefry", marks=pytest.mark.slow)])
def test_scanned_and_unrolled_layers_draw_the_same_masks(generator):
  config = Bert(layers=2, width=16, heads=2, vocab_size=32, positions=8)
  model = jax.jit(lambda key: config.init(key, {}))(jax.random.key(0))
  batch = {
    "input_ids": jnp.arange(16).reshape(2, 8),
    "segment_ids": jnp.zeros((2, 8), jnp.int32),
    "length": jnp.array([8, 5]),
  }

  def run(layers):
    compute = Compute(dtype="float32", layers=layers, dropout=generator)
    return jax.jit(lambda key: model(batch, compute, Noise.create(key, generator)))

  scanned, unrolled = run("scan"), run("unroll")
  first, second = jax.random.split(jax.random.key(1))
  np.testing.assert_allclose(scanned(first), unrolled(first), atol=2e-6)
  assert np.abs(scanned(first) - scanned(second)).max() > 0.1
