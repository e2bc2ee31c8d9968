"""Weights of transformers' encoders under our parameter names, for tests of parity."""

import jax
import numpy as np

from plm_jax.models.parameters import path_name

ATTENTION = {"query": "query", "key": "key", "value": "value"}


def blocks(get, layer, layers, heads, names):
  """{path under `blocks`: stacked array}; get(name): a weight. names: ours -> theirs in a layer."""
  arrays = {}
  for ours, theirs in names.items():
    kernels = [get(f"{layer.format(i)}.{theirs}.weight") for i in range(layers)]
    biases = [get(f"{layer.format(i)}.{theirs}.bias") for i in range(layers)]
    if ours.endswith("norm"):
      arrays[f"{ours}/gain"], arrays[f"{ours}/bias"] = np.stack(kernels), np.stack(biases)
      continue
    kernel, bias = np.stack([k.T for k in kernels]), np.stack(biases)
    if ours.split("/")[-1] in ("query", "key", "value"):
      kernel = kernel.reshape(*kernel.shape[:2], heads, -1)
      bias = bias.reshape(layers, heads, -1)
    elif ours.endswith("output"):
      kernel = kernel.reshape(layers, heads, -1, kernel.shape[-1])
    arrays[f"{ours}/kernel"], arrays[f"{ours}/bias"] = kernel, bias
  return arrays


def dense(get, ours, theirs):
  return {f"{ours}/kernel": get(f"{theirs}.weight").T, f"{ours}/bias": get(f"{theirs}.bias")}


def norm(get, ours, theirs):
  return {f"{ours}/gain": get(f"{theirs}.weight"), f"{ours}/bias": get(f"{theirs}.bias")}


def filled(params, arrays):
  """The parameters with the arrays at their paths. Errors: AssertionError for what is left over."""
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)
  names = [path_name(path) for path, _ in leaves]
  assert set(names) == set(arrays), set(names) ^ set(arrays)
  for name, (_, leaf) in zip(names, leaves):
    assert arrays[name].shape == leaf.shape, (name, arrays[name].shape, leaf.shape)
  return jax.tree.unflatten(tree, [arrays[name] for name in names])


def under(prefix, arrays):
  return {f"{prefix}{name}": array for name, array in arrays.items()}


def randomised(torch, model, seed=0):
  """Weights of every kind that are not zero or one, so that no bias or norm can be left out."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()
