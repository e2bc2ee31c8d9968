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


def main() -> None:
  found = {kind: torch_results(kind) for kind in GATES}
  rounded = json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.7g}"))
  GOLDEN.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
  main()
