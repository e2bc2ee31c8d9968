"""torch's recurrent layers on weights of ours: outputs, last states and gradients.

python -m tests.models.torch_recurrent      # writes torch_recurrent.json anew
"""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_suffix(".json")
LAYERS, WIDTH, ROWS, LENGTH = 2, 6, 3, 7
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def numbers(kind: str) -> dict[str, np.ndarray]:
  """The weights of both layers, the inputs and the initial states."""
  draws, gates = np.random.default_rng(GATES[kind]), GATES[kind]
  shapes = {"x": (ROWS, LENGTH, WIDTH), "h": (LAYERS, ROWS, WIDTH), "c": (LAYERS, ROWS, WIDTH)}
  for layer in range(LAYERS):
    shapes |= {f"input/{layer}": (WIDTH, gates, WIDTH), f"recurrent/{layer}": (WIDTH, gates, WIDTH)}
    shapes |= {f"bias/{layer}": (gates, WIDTH), f"recurrent_bias/{layer}": (gates, WIDTH)}
  made = {name: 0.5 * draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  if kind != "GRU":  # ours has one bias
    made |= {name: 0 * value for name, value in made.items() if name.startswith("recurrent_bias")}
  return made


def torch_results(kind: str) -> dict[str, list]:
  """outputs, last states, and the gradients of the sum of squared outputs."""
  import torch

  given = numbers(kind)
  module = getattr(torch.nn, kind)(WIDTH, WIDTH, LAYERS, batch_first=True)

  def matrix(name):
    return torch.tensor(given[name].reshape(WIDTH, -1).T.copy())

  with torch.no_grad():
    for layer in range(LAYERS):
      getattr(module, f"weight_ih_l{layer}").copy_(matrix(f"input/{layer}"))
      getattr(module, f"weight_hh_l{layer}").copy_(matrix(f"recurrent/{layer}"))
      getattr(module, f"bias_ih_l{layer}").copy_(torch.tensor(given[f"bias/{layer}"].ravel()))
      bias = torch.tensor(given[f"recurrent_bias/{layer}"].ravel())
      getattr(module, f"bias_hh_l{layer}").copy_(bias)
  x = torch.tensor(given["x"], requires_grad=True)
  h, c = torch.tensor(given["h"]), torch.tensor(given["c"])
  outputs, last = module(x, (h, c) if kind == "LSTM" else h)
  outputs.square().sum().backward()
  found = {"outputs": outputs, "of_x": x.grad}
  found |= dict(zip(("h", "c"), last if kind == "LSTM" else (last,), strict=False))
  for layer in range(LAYERS):
    for ours, theirs in (("input", "weight_ih"), ("recurrent", "weight_hh")):
      gradient = getattr(module, f"{theirs}_l{layer}").grad
      found[f"of_{ours}/{layer}"] = gradient.T.reshape(WIDTH, GATES[kind], WIDTH)
    found[f"of_bias/{layer}"] = getattr(module, f"bias_ih_l{layer}").grad.reshape(-1, WIDTH)
  return {name: value.detach().numpy().astype(float).tolist() for name, value in found.items()}


LENGTHS, DIRECTIONS = [7, 4, 1], ("forward", "backward")


def numbers_of_both() -> dict[str, np.ndarray]:
  """The weights of both directions of both layers, whose outputs have WIDTH numbers, and the
  inputs."""
  draws, units = np.random.default_rng(9), WIDTH // 2
  shapes: dict[str, tuple[int, ...]] = {"x": (ROWS, LENGTH, WIDTH)}
  for place in (f"{layer}/{side}" for layer in range(LAYERS) for side in DIRECTIONS):
    shapes |= {f"{place}/input/kernel": (WIDTH, 4, units), f"{place}/input/bias": (4, units)}
    shapes |= {f"{place}/recurrent/kernel": (units, 4, units)}
  return {name: 0.5 * draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def torch_results_of_both() -> dict[str, list]:
  """outputs of a bidirectional LSTM on packed rows, 0 at padding, and the gradients of the sum of
  their squares."""
  import torch
  from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

  given, gradients = numbers_of_both(), {}
  module = torch.nn.LSTM(WIDTH, WIDTH // 2, LAYERS, batch_first=True, bidirectional=True)
  names = {"input/kernel": "weight_ih", "recurrent/kernel": "weight_hh", "input/bias": "bias_ih"}
  for layer in range(LAYERS):
    for side, suffix in zip(DIRECTIONS, ("", "_reverse"), strict=True):
      for ours, theirs in names.items():
        value = given[f"{layer}/{side}/{ours}"]
        value = value.reshape(len(value), -1).T if "kernel" in ours else value.ravel()
        parameter = getattr(module, f"{theirs}_l{layer}{suffix}")
        gradients[f"{layer}/{side}/{ours}"] = parameter
        with torch.no_grad():
          parameter.copy_(torch.tensor(value.copy()))
          getattr(module, f"bias_hh_l{layer}{suffix}").zero_()
  x = torch.tensor(given["x"], requires_grad=True)
  packed = pack_padded_sequence(x, LENGTHS, batch_first=True)
  outputs, _ = pad_packed_sequence(module(packed)[0], batch_first=True)
  outputs.square().sum().backward()
  found = {"outputs": outputs.detach(), "x": x.grad}
  for name, parameter in gradients.items():
    shape = given[name].shape
    value = parameter.grad.T if "kernel" in name else parameter.grad
    found[name] = value.reshape(shape)
  return {name: value.numpy().astype(float).tolist() for name, value in found.items()}


def main() -> None:
  found = {kind: torch_results(kind) for kind in GATES} | {"BiLSTM": torch_results_of_both()}
  rounded = json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.7g}"))
  GOLDEN.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
  main()
