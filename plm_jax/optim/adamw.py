"""AdamW and LAMB with learning-rate schedules, as optax chains from a frozen configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plm_jax.errors import UserError
from plm_jax.models.parameters import layer_of, map_roles, stacked_axes, with_roles


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
  """Adam with decoupled, lr-scaled weight decay (Loshchilov & Hutter 2019) after a global clip.

      m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
      w = w - lr (m / (sqrt(v) + eps) + decay w)      with m, v bias-corrected or not

  Biases and the gains of norms are decayed only with decays="all", as in RoBERTa's code (fairseq,
  optim/adam.py). `paper_faithful` has the quirks of BERT's optimiser: no bias correction (its first
  step is .1 / sqrt(.001) = 3.162 lr per coordinate instead of 1 lr), and a linear decay that starts
  at step 0, under the warmup.

  peak: highest learning rate. warmup: steps of linear increase from 0. clip: global gradient norm,
  0 is off. schedule: the decay after the warmup, to 0 at the last step; `wsd` (warmup, stable,
  decay; Hu et al. 2024) stays at the peak and falls in the last fifth, `constant` does not fall,
  and `inverse_sqrt` is peak sqrt(warmup / step): with `noam_peak(width, warmup)` that is width^-0.5
  min(step^-0.5, step warmup^-1.5) (Vaswani et al. 2017, section 5.3).
  layer_decay: the learning rate of a layer as a share of that of the layer above it, 1 is off; see
  `layer_rates`.
  unfreeze: gradual unfreezing (Howard & Ruder 2018, section 3.3): only the heads are trained at
  first, and after every `unfreeze` steps one more layer, from the last to the embeddings; 0 is off.
  """

  peak: float = 1e-4
  warmup: int = 10_000
  schedule: Literal["linear", "cosine", "constant", "wsd", "inverse_sqrt"] = "linear"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  decay: float = 0.01
  decays: Literal["kernels", "all"] = "kernels"
  clip: float = 1.0
  bias_correction: bool = True
  decay_under_warmup: bool = False
  layer_decay: float = 1.0
  unfreeze: int = 0

  def __post_init__(self):
    if self.unfreeze < 0:
      raise UserError(f"optim.unfreeze={self.unfreeze} must be at least 0")
    if not 0 < self.layer_decay <= 1:
      raise UserError(f"optim.layer_decay={self.layer_decay} must be above 0 and at most 1")
    if self.peak <= 0:
      raise UserError(f"optim.peak={self.peak} must be positive")
    if self.warmup < 0 or self.clip < 0 or self.decay < 0 or self.eps <= 0:
      raise UserError("optim.warmup, optim.clip and optim.decay must be >= 0, and optim.eps > 0")
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise UserError(f"optim.b1={self.b1} and optim.b2={self.b2} must be at least 0 and below 1")
    if self.decay_under_warmup and self.schedule != "linear":
      raise UserError("optim.decay_under_warmup needs BERT's schedule: set optim.schedule=linear")

  def paper_faithful(self) -> Self:
    """As google-research/bert (eedf571) and google-research/albert (b772393), optimization.py."""
    return dataclasses.replace(
      self, schedule="linear", bias_correction=False, decay_under_warmup=True
    )

  def constants(self, steps: int) -> dict[str, np.float32]:
    """The numbers of the schedule of a run of `steps` updates. They are arguments of the compiled
    step, so that another rate or length compiles nothing again. Divisors are reciprocals, as the
    compiler makes them of constants."""
    numbers = {
      "peak": self.peak,
      "warmup": self.warmup,
      "per_warmup": 1 / np.float32(max(self.warmup, 1)),
      "per_step": 1 / np.float32(max(steps, 1)),
      "per_falling": 1 / np.float32(max(steps - self.warmup, 1)),
    }
    return {name: np.float32(number) for name, number in numbers.items()}

  def learning_rate(self, steps: int) -> optax.Schedule:
    """Update number (0 for the first) -> learning rate, for a run of `steps` updates.

    The default rises over updates 1..warmup and reaches 0 after the last update; BERT's has lr(0) =
    0, lr(warmup) = peak (1 - warmup / steps) and lr(steps) = 0.
    """
    return self.schedule_of(self.constants(steps))

  def schedule_of(self, constants: Mapping[str, Any]) -> optax.Schedule:
    """As `learning_rate`, from a run's `constants`."""
    peak, warmup, per_warmup = (constants[name] for name in ("peak", "warmup", "per_warmup"))

    def schedule(update):
      update = jnp.asarray(update, jnp.float32)
      if self.decay_under_warmup:
        after = 1 - update * constants["per_step"]
        return peak * jnp.where(update < warmup, update * per_warmup, after)
      rising = (update + 1) * per_warmup
      done = jnp.clip((update - warmup) * constants["per_falling"], 0, 1)
      after = {
        "linear": 1 - done,
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
        "constant": jnp.ones_like(done),
        "wsd": jnp.minimum(1, 5 * (1 - done)),
        "inverse_sqrt": jnp.sqrt(jnp.maximum(warmup, 1) / (update + 1)),
      }[self.schedule]
      return peak * jnp.where(update < warmup, rising, after)

    return schedule

  def direction(self) -> optax.GradientTransformation:
    """From clipped gradients to what is decayed and multiplied by the learning rate."""
    adam = optax.scale_by_adam if self.bias_correction else scale_by_uncorrected_adam
    return adam(self.b1, self.b2, self.eps)

  def adaptation(self) -> tuple[optax.GradientTransformation, ...]:
    """Transformations between the decayed direction and the learning rate."""
    return ()

  def transform(self, steps: int) -> optax.GradientTransformation:
    return self.transform_at(self.learning_rate(steps))

  def transform_at(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    chain = optax.chain(
      optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
      self.direction(),
      optax.add_decayed_weights(self.decay, mask=is_decayed if self.decays == "kernels" else None),
      *self.adaptation(),
      optax.scale_by_learning_rate(learning_rate),
      *([scale_by_layer(self.layer_decay)] if self.layer_decay < 1 else []),
    )
    return unfreezing(chain, self.unfreeze) if self.unfreeze else chain


def noam_peak(width: int, warmup: int) -> float:
  """The learning rate at the end of the warmup of Vaswani et al.: 6.99e-4 for 512 and 4,000."""
  return (width * warmup) ** -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMB(AdamW):
  """AdamW with every tensor's update u rescaled: w = w - lr |w| / |u| u (You et al. 2020, algorithm
  2; google-research/albert b772393, lamb_optimizer.py).

  For biases and the gains of norms, and where |w| or |u| is 0, the ratio is 1. The defaults are
  those of ALBERT for batches of 4,096 rows (Lan et al. 2020, section 4.1).
  """

  peak: float = 1.76e-3
  warmup: int = 3125

  def adaptation(self) -> tuple[optax.GradientTransformation, ...]:
    return (scale_by_trust_ratio(),)


def scale_by_trust_ratio() -> optax.GradientTransformation:
  """u |w| / |u| for kernels and tables, for each layer of a stack alone, as in the original."""

  def update(updates, state, params):
    def scaled(path, role, u, w):
      if not role.is_weight:
        return u
      axes = tuple(range(stacked_axes(path, role, u.ndim), u.ndim))
      w_norm, u_norm = (jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (w, u))
      return u * jnp.where((w_norm > 0) & (u_norm > 0), w_norm / jnp.maximum(u_norm, 1e-30), 1.0)

    return map_roles(scaled, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
  """Multiplies every update by its `layer_rates`."""

  def update(updates, params=None):
    del params
    return jax.tree.map(jnp.multiply, updates, layer_rates(updates, decay))

  return optax.stateless(update)


def layer_rates(params, decay: float) -> object:
  """Each parameter's share of the learning rate: `decay ** (L + 2 - depth)`, arrays that broadcast.

  Depth is 0 for the embeddings, i + 1 for layer i of L, L + 2 for heads, so that the last layer's
  exponent is 2 and not 1 (google-research/electra, model/optimization.py `_get_layer_lrs`). The
  final norm counts with the heads (microsoft/unilm, beit/optim_factory.py `get_num_layer_for_vit`).
  Shared layers count once; an entry of a group has the depth of the last layer that reads it.

  Encoder and decoder, and ELECTRA's two models, count from their own first layers, and L is the
  number of layers of the deeper stack: our choice, because the sources have a single stack. BEiT
  gives tables of relative positions the rate of a head; here they are embeddings.
  """
  layers_of: dict[str, int] = {}  # by stack

  for path, role, leaf in with_roles(params):
    if role.depth == "layer":
      stack, layer = layer_of(path)
      layers = leaf.shape[0] if layer is None else layer + 1
      layers_of[stack] = max(layers_of.get(stack, 0), layers)
  deepest = max(layers_of.values(), default=0)

  def rate(path, role, leaf):
    if role.depth == "embedding":
      return jnp.full((), decay ** (deepest + 2), leaf.dtype)
    if role.depth != "layer":
      return jnp.ones((), leaf.dtype)
    stack, layer = layer_of(path)
    if layer is not None:
      return jnp.full((), decay ** (deepest + 1 - layer), leaf.dtype)
    entries = leaf.shape[0]
    last = (jnp.arange(1, entries + 1) * layers_of[stack]) // entries - 1
    rates = decay ** (deepest + 1.0 - last)
    return rates.astype(leaf.dtype).reshape(entries, *(1,) * (leaf.ndim - 1))

  return map_roles(rate, params)


class Unfreezing(NamedTuple):
  """The state of `unfreezing`: the number of updates, and the state of the inner transformation."""

  count: jax.Array
  inner: optax.OptState


def unfreezing(inner: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
  """`inner` with gradients and updates of 0 for layers whose turn has not come: heads are trained
  from the beginning, layer l of L after `every (L + 1 - l)` updates, embeddings after
  `every (L + 1)`."""

  def update(grads, state, params=None):
    # The exponents of `layer_rates` are 0, 2, ..., L + 2; powers of 1/2 are exact.
    def chosen(x, rate):
      turn = jnp.maximum(jnp.round(-jnp.log2(rate)) - 1, 0)
      return x * (turn <= state.count // every)

    rates = layer_rates(grads, 0.5)
    masked = jax.tree.map(chosen, grads, rates)
    updates, after = inner.update(masked, state.inner, params)
    return jax.tree.map(chosen, updates, rates), Unfreezing(state.count + 1, after)

  def init(params):
    return Unfreezing(jnp.zeros((), jnp.int32), inner.init(params))

  return optax.GradientTransformation(init, update)


def is_decayed(params) -> object:
  """A tree of bools: True for kernels and tables, False for biases and gains."""
  return map_roles(lambda path, role, leaf: role.is_weight, params)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam's direction without bias correction (google-research/bert issue #153)."""

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

  def update(grads, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
    return direction, optax.ScaleByAdamState(state.count + 1, mu, nu)

  return optax.GradientTransformation(init, update)
