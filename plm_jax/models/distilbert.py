"""DistilBERT, a distilled version of BERT (Sanh et al. 2019, arXiv:1910.01108).

Half of BERT's layers, without segments and without a pooler in pretraining. The student starts from
about every second layer of its teacher and learns to predict the teacher's outputs.

Sources: the paper; huggingface/transformers-research-projects (fccd0cd) distillation/train.py,
distiller.py, scripts/extract_distilbert.py.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.encoder import Encoder, EncoderModel
from plm_jax.models.parameters import is_stacked, named

TEACHER, STUDENT = "teacher/", "student/"
# Fields that must be equal if a student starts from its teacher's parameters.
_FROM_TEACHER = (
  *("width", "heads", "kv_heads", "head_width", "hidden", "embedding", "positions", "position"),
  *("first_position", "norm", "norm_at", "gated", "attention_bias", "feed_forward_bias"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilBert(Encoder):
  """DistilBERT; the defaults are those of DistilBERT-base."""

  layers: int = 6
  segments: int = 0
  activation: Activation = "gelu_erf"
  pooler_activation: Literal["tanh", "relu", "gelu_erf"] = "relu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled(DistilBert):
  """A student, whose sizes are the encoder's fields, and its frozen teacher.

  teacher: the directory of a run with a masked-LM head. teacher_model: its configuration, filled in
    from that run. start: the student's first parameters; `teacher` copies the teacher's tables,
    head and some of its layers (`layer_selection`), `random` is the paper's Table 4, last row.
  freeze_positions: do not train the position table of the teacher (`--freeze_pos_embs`).
  """

  teacher: str
  teacher_model: Encoder | None = None
  start: Literal["teacher", "random"] = "teacher"
  freeze_positions: bool = True

  def __post_init__(self):
    super().__post_init__()
    teacher = self.teacher_model
    if teacher is None:
      return
    if teacher.positions < self.positions:
      raise UserError(
        f"model.positions={self.positions} is more than the {teacher.positions} of the teacher in "
        f"{self.teacher}; lower it"
      )
    if self.start == "teacher":
      for name in _FROM_TEACHER:
        student_value, teacher_value = getattr(self, name), getattr(teacher, name)
        if student_value != teacher_value:
          raise UserError(
            f"the student starts from its teacher in {self.teacher} and has model.{name}="
            f"{student_value}; set model.{name}={teacher_value} as in the teacher, or "
            "model.start=random"
          )
      if self.layers > teacher.layers or self.segments not in (0, teacher.segments):
        raise UserError(
          f"the student has {self.layers} layers and {self.segments} segments, its teacher in "
          f"{self.teacher} {teacher.layers} and {teacher.segments}: the student cannot have more "
          "layers, and other segments only if it has 0"
        )

  @property
  def encoder(self) -> DistilBert:
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(DistilBert)}
    return DistilBert(**values)

  @property
  def encoder_path(self) -> str:
    return STUDENT

  @property
  def frozen(self) -> tuple[str, ...]:
    positions = self.freeze_positions and self.start == "teacher"
    return (TEACHER + "*", *([STUDENT + "embed/position/*"] if positions else []))

  def init(self, key: jax.Array, heads: dict[str, int]) -> DistilledModel:
    """Random parameters of both; `DistilledModel.taught` replaces the teacher's."""
    if self.teacher_model is None:
      raise ValueError("the teacher is not resolved: experiment_flags.with_teacher fills it in")
    unknown = set(heads) - {"mlm", "teacher"}
    if unknown:
      raise UserError(
        f"a distilled model has no head {sorted(unknown)[0]!r}: it learns by Distillation, MLM and "
        "Cosine"
      )
    return DistilledModel(self, key, {"mlm": 0})


class States(NamedTuple):
  """The result of a forward pass, `[B, T, D]` each."""

  student: jax.Array
  teacher: jax.Array


class DistilledModel(nnx.Module):
  """Student and teacher, which read the same rows."""

  def __init__(self, config: Distilled, key: jax.Array, heads: dict[str, int]):
    student, teacher = jax.random.split(key)
    self.config = config
    self.student = config.encoder.init(student, heads)
    self.teacher = config.teacher_model.init(teacher, {"mlm": 0})

  def encoder(self) -> EncoderModel:
    return self.student

  def masked_lm(self) -> EncoderModel | None:
    return self.student.masked_lm()

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> States:
    """The teacher has no dropout and no gradient."""
    teacher = jax.lax.stop_gradient(self.teacher(batch, compute))
    return States(self.student(batch, compute, noise), teacher)

  def token_logits_at(self, states: States, positions_BP: jax.Array) -> jax.Array:
    """The student's float32 `[B, P, V]`."""
    return self.student.token_logits_at(states.student, positions_BP)

  def both_logits(
    self, states: States, positions_BP: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """The student's and the teacher's float32 `[B, P, V]`; positions None is all positions."""
    if positions_BP is None:
      student = self.student.token_logits(states.student)
      teacher = self.teacher.token_logits(states.teacher)
    else:
      student = self.token_logits_at(states, positions_BP)
      teacher = self.teacher.token_logits_at(states.teacher, positions_BP)
    return student, jax.lax.stop_gradient(teacher)

  def taught(self, teacher: EncoderModel) -> DistilledModel:
    """The model with this teacher; with start="teacher" the student copies its parameters."""
    of_teacher = dict(named(teacher))
    layers, teacher_layers = self.config.layers, self.config.teacher_model.layers
    chosen = layer_selection(teacher_layers, layers)

    def leaf(name: str, random: jax.Array) -> jax.Array:
      if name.startswith(TEACHER):
        return of_teacher[name.removeprefix(TEACHER)]
      source = of_teacher.get(name.removeprefix(STUDENT))
      if self.config.start != "teacher" or source is None:  # a head that the teacher lacks
        return random
      if is_stacked(name):
        entries = random.shape[0]
        firsts = [entry * layers // entries for entry in range(entries)]
        return source[np.array([chosen[i] * source.shape[0] // teacher_layers for i in firsts])]
      return jnp.array(source)  # a copy, since the train step donates every buffer

    tree = jax.tree.structure(self)
    return jax.tree.unflatten(tree, [leaf(name, random) for name, random in named(self)])


def layer_selection(teacher: int, student: int) -> list[int]:
  """The teacher's layers that the student copies: from first to last at equal distances.

  12 -> 6 is [0, 2, 4, 7, 9, 11], as in scripts/extract_distilbert.py.
  """
  return np.rint(np.linspace(0, teacher - 1, student)).astype(int).tolist()
