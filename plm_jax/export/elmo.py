"""Reads the released files of an ELMo: options.json and lm_weights.hdf5 (allenai/bilm-tf).

TensorFlow keeps the gates in the order i, g, f, o, and adds 1 to the forget gate's bias; the
embedding of characters lacks the row of padding.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from plm_jax.data.published_folder import read_object
from plm_jax.errors import UserError
from plm_jax.models.elmo import CHARACTERS, Elmo, ElmoModel
from plm_jax.models.parameters import named

OPTIONS, WEIGHTS = "options.json", "lm_weights.hdf5"
_ORDER = [0, 2, 1, 3]  # from TensorFlow's gates to ours


def load(folder: str | Path, vocab_size: int = 1) -> tuple[Elmo, ElmoModel]:
  """The model of a folder, without an output and with `vocab_size` empty tokens.

  Errors: `UserError` for files that are missing or of another model, and without h5py.
  """
  folder = Path(folder)
  config = config_of(read_object(folder / OPTIONS), folder, vocab_size)
  arrays = _arrays(folder / WEIGHTS)
  params = jax.eval_shape(lambda key: config.init(key, {}), jax.random.key(0))
  wanted = {path: leaf.shape for path, leaf in named(params)}
  made = _ours(config, arrays, folder / WEIGHTS) | {
    "characters/table": np.zeros(wanted["characters/table"], np.int32)
  }
  for path, shape in wanted.items():
    if made[path].shape != shape:
      raise UserError(
        f"{folder / WEIGHTS} gives {path} the shape {list(made[path].shape)}, and {OPTIONS} "
        f"{list(shape)}; the files do not belong together"
      )
  leaves = [jax.numpy.asarray(made[path]) for path in wanted]
  return config, jax.tree.unflatten(jax.tree.structure(params), leaves)


def config_of(options: dict, folder: Path, vocab_size: int) -> Elmo:
  """The configuration in options.json."""
  try:
    lstm, characters = options["lstm"], options["char_cnn"]
    if characters["n_characters"] not in (CHARACTERS - 1, CHARACTERS):
      raise UserError(
        f"{folder / OPTIONS} has {characters['n_characters']} characters; expected {CHARACTERS}"
      )
    if lstm["cell_clip"] != lstm["proj_clip"] or characters["activation"] != "relu":
      raise UserError(f"{folder / OPTIONS} has two clips or another activation than relu")
    return Elmo(
      layers=lstm["n_layers"],
      width=lstm["projection_dim"],
      cell=lstm["dim"],
      character_width=characters["embedding"]["dim"],
      filters=tuple((width, number) for width, number in characters["filters"]),
      highways=characters["n_highway"],
      longest=characters["max_characters_per_token"],
      clip=float(lstm["cell_clip"]),
      residual=lstm["use_skip_connections"],
      vocab_size=vocab_size,
    )
  except (KeyError, TypeError) as error:
    raise UserError(f"{folder / OPTIONS} is not that of an ELMo: {error} is missing") from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
  """{name: array} of an HDF5 file."""
  try:
    import h5py
  except ImportError:
    raise UserError(
      "reading lm_weights.hdf5 needs h5py: pip install 'plm_jax[elmo]', or pip install h5py"
    ) from None
  found: dict[str, np.ndarray] = {}

  def keep(name, node):
    if isinstance(node, h5py.Dataset):
      found[name] = np.asarray(node)

  try:
    with h5py.File(path) as file:
      file.visititems(keep)
  except OSError as error:
    raise UserError(f"{path} cannot be read as HDF5: {error}") from None
  return found


def _ours(config: Elmo, arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
  """{our path: array}."""
  try:
    table = arrays["char_embed"]
    made = {"tokens/character/table": np.concatenate([np.zeros_like(table[:1]), table])}
    for number in range(len(config.filters)):
      place = f"tokens/convolutions/{number}/filters"
      made[f"{place}/kernel"] = arrays[f"CNN/W_cnn_{number}"][0]
      made[f"{place}/bias"] = arrays[f"CNN/b_cnn_{number}"]
    for number in range(config.highways):
      for name in ("carry", "transform"):
        for ours, theirs in (("kernel", "W"), ("bias", "b")):
          value = arrays[f"CNN_high_{number}/{theirs}_{name}"]
          made[f"tokens/highways/{number}/{name}/{ours}"] = value
    made["tokens/project/kernel"] = arrays["CNN_proj/W_proj"]
    made["tokens/project/bias"] = arrays["CNN_proj/b_proj"]
    for side, direction in enumerate(("forward", "backward")):
      for number in range(config.layers):
        place = f"RNN_{side}/RNN/MultiRNNCell/Cell{number}/LSTMCell"
        kernel = _gates(arrays[f"{place}/W_0"])
        bias = _gates(arrays[f"{place}/B"][None])[0]
        bias[1] += 1
        layer = f"{direction}/{number}"
        made[f"{layer}/input/kernel"] = kernel[: config.width]
        made[f"{layer}/recurrent/kernel"] = kernel[config.width :]
        made[f"{layer}/input/bias"] = bias
        made[f"{layer}/output/kernel"] = arrays[f"{place}/W_P_0"]
  except KeyError as error:
    raise UserError(f"{path} lacks {error.args[0]}; it is not the model of {OPTIONS}") from None
  return made


def _gates(x: np.ndarray) -> np.ndarray:
  """`[D, 4 U]` in TensorFlow's order as `[D, 4, U]` in ours."""
  return x.reshape(len(x), 4, -1)[:, _ORDER].copy()
