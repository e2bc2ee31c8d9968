"""Sentence-BERT's directories: an encoder and the pooling of its states into one vector.

A linear map from the mean to the scores of classes may follow: their module Dense. Source:
sentence-transformers 6.2, Pooling, Dense and modules.json. Reimers and Gurevych 2019, section 3.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.published_folder import MOST_JSON, object_in, read_object
from plm_jax.errors import UserError
from plm_jax.export.options import Options
from plm_jax.export.tensors import SINGLE, read_tensors, write_safetensors
from plm_jax.files import parse_json, read_bytes

MODULES = "modules.json"
KIND = "sentence_transformers.models."
SHORTEST = 2  # tokens of a row: [CLS] and [SEP]
# Their switch -> our name, in the order in which the vectors are concatenated.
MODES = {
  "pooling_mode_cls_token": "cls",
  "pooling_mode_max_tokens": "max",
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
ENCODER_FILE = "sentence_bert_config.json"
ORDERS = [["Transformer", "Pooling", *last] for last in ([], ["Normalize"], ["Dense"])]
DENSE = ("linear.weight", "linear.bias")
IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"


class Pooling(NamedTuple):
  """modes: of `MODES`; several are concatenated. normalize: to length 1. length: the most tokens of
  a text; None is the encoder's positions. lowercase: texts, before the tokenizer."""

  modes: tuple[str, ...] = ("mean",)
  normalize: bool = False
  length: int | None = None
  lowercase: bool = False

  def __call__(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """float32 `[B, D * modes]`."""
    real_BT1 = mask_BT.astype(jnp.float32)[..., None]
    sum_BD, count_B1 = (hidden_BTD * real_BT1).sum(axis=1), jnp.maximum(real_BT1.sum(axis=1), 1e-9)
    vectors = {
      "cls": hidden_BTD[:, 0],
      "max": jnp.where(real_BT1 > 0, hidden_BTD, -1e9).max(axis=1),
      "mean": sum_BD / count_B1,
      "mean_sqrt_len_tokens": sum_BD / jnp.sqrt(count_B1),
    }
    vector = jnp.concatenate([vectors[mode] for mode in self.modes], axis=-1)
    if self.normalize:
      vector /= jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
    return vector


def is_sentence_encoder(directory: Path) -> bool:
  return (directory / MODULES).is_file()


def body_of(directory: Path) -> Path:
  """The folder of the encoder's files. Errors: `UserError` for unknown modules."""
  return directory / _modules(directory)[0]["path"] if is_sentence_encoder(directory) else directory


def read_pooling(directory: Path, width: int, positions: int) -> Pooling:
  """width, positions: of the encoder. Errors: `UserError` for options that are not here."""
  places = {module["type"]: directory / module["path"] for module in _modules(directory)}
  modes = _modes(places["Pooling"] / "config.json", width)
  if "Dense" in places and modes != ("mean",):
    raise UserError(
      f"{directory} has a Dense after the pooling {' and '.join(modes)}; this project reads one "
      "only after the mean."
    )
  body = body_of(directory)
  own = object_in(body, ENCODER_FILE)
  length, lowercase = own.get("max_seq_length"), own.get("do_lower_case") or False
  if length is not None and (type(length) is not int or not SHORTEST <= length < 2**31):
    raise UserError(
      f"{body / ENCODER_FILE} sets max_seq_length={length!r}; expected a whole number from "
      f"{SHORTEST}."
    )
  if not isinstance(lowercase, bool):
    raise UserError(f"{body / ENCODER_FILE} sets do_lower_case={lowercase!r}; expected a bool.")
  if length is None:  # versions from 6 on name it in the tokenizer's file
    length = object_in(body, "tokenizer_config.json").get("model_max_length")
    # transformers writes 1e30 for no limit.
    has_limit = type(length) is int and SHORTEST <= length < 2**31
    length = min(length, positions) if has_limit else None
  return Pooling(modes, "Normalize" in places, length, lowercase)


def read_dense(directory: Path) -> dict[str, np.ndarray]:
  """The tensors `DENSE` of the scores [classes, width]; none without a Dense. Errors: `UserError`
  for an activation, or any other option or shape."""
  modules = _modules(directory) if is_sentence_encoder(directory) else []
  if not modules or modules[-1]["type"] != "Dense":
    return {}
  folder = directory / modules[-1]["path"]
  file, tensors = folder / "config.json", read_tensors(folder)
  classes, width = np.shape(tensors.get(DENSE[0], np.zeros((0, 0))))[:2]
  options = Options({"activation_function": TANH} | read_object(file), str(file))
  options.fixed("activation_function", IDENTITY)
  options.fixed("in_features", width)
  options.fixed("out_features", classes)
  options.fixed("bias", True)
  options.fixed("use_residual", False)
  options.fixed("module_input_name", "sentence_embedding")
  options.fixed("module_output_name", "sentence_embedding", None)
  options.finish()
  return tensors


def write_pooling(
  directory: Path, pooling: Pooling, width: int, dense: Mapping[str, np.ndarray]
) -> None:
  """Writes the files of the pooling; the encoder's are in `directory` itself. dense: as from
  `read_dense`."""
  modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
  modules += [("Normalize", "2_Normalize")] if pooling.normalize else []
  modules += [("Dense", "2_Dense")] if dense else []
  listed = [
    {"idx": i, "name": str(i), "path": path, "type": KIND + kind}
    for i, (kind, path) in enumerate(modules)
  ]
  (directory / MODULES).write_text(json.dumps(listed, indent=2))
  (directory / "1_Pooling").mkdir()
  switches = {switch: mode in pooling.modes for switch, mode in MODES.items()}
  options = {"word_embedding_dimension": width, **switches}
  (directory / "1_Pooling" / "config.json").write_text(json.dumps(options, indent=2))
  own = {"max_seq_length": pooling.length, "do_lower_case": pooling.lowercase}
  (directory / ENCODER_FILE).write_text(json.dumps(own, indent=2))
  if dense:
    (directory / "2_Dense").mkdir()
    classes = len(dense["linear.bias"])
    options = {"in_features": width, "out_features": classes, "bias": True}
    options |= {"activation_function": IDENTITY}
    (directory / "2_Dense" / "config.json").write_text(json.dumps(options, indent=2))
    write_safetensors(directory / "2_Dense" / SINGLE, dense)


def _modules(directory: Path) -> list[dict[str, str]]:
  file = directory / MODULES
  try:
    listed = parse_json(read_bytes(file, MOST_JSON), file)
    modules = [{"type": m["type"], "path": m["path"]} for m in listed]
    kinds = [module["type"].rpartition(".")[2] for module in modules]
  except (TypeError, KeyError, AttributeError):
    raise UserError(f"{file} is no list of modules, each with a type and a path.") from None
  except (OSError, ValueError) as error:
    raise UserError(f"{file} cannot be read: {error}.") from None
  if kinds not in ORDERS:
    raise UserError(
      f"{file} lists {', '.join(kinds)}; this project has Transformer, Pooling, and after them "
      "Normalize, Dense or nothing."
    )
  for module in modules:
    if not (directory / module["path"]).resolve().is_relative_to(directory.resolve()):
      raise UserError(f"{file} names {module['path']!r}, which is not within its directory.")
  return [module | {"type": kind} for module, kind in zip(modules, kinds)]


def _modes(file: Path, width: int) -> tuple[str, ...]:
  options = read_object(file)
  switches = {name: value for name, value in options.items() if name.startswith("pooling_mode_")}
  if wrong := [name for name, value in switches.items() if not isinstance(value, bool)]:
    raise UserError(f"{file} sets {wrong[0]}={switches[wrong[0]]!r}; expected true or false.")
  # Versions from 6 on have one name, or a list of names in the order of concatenation.
  if named := options.get("pooling_mode"):
    chosen = named if isinstance(named, list) else [named]
    unknown = [mode for mode in chosen if mode not in MODES.values()]
  else:
    chosen = [mode for switch, mode in MODES.items() if switches.get(switch)]
    unknown = [switch for switch, on in switches.items() if on and switch not in MODES]
  if unknown or not chosen:
    raise UserError(
      f"{file} sets {unknown[0] if unknown else 'no pooling'}; there is "
      f"{', '.join(MODES.values())}."
    )
  for name in ("word_embedding_dimension", "embedding_dimension"):
    if options.get(name, width) != width:
      raise UserError(f"{file} pools {options[name]} numbers, not {width}.")
  if options.get("include_prompt") is False:
    raise UserError(f"{file} sets include_prompt=false, which this project does not support.")
  return tuple(chosen)
