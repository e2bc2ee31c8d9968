"""A vocabulary's special roles, for rows and objectives, and the tokens around a text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from plm_jax.errors import UserError


class SpecialTokens(NamedTuple):
  """Statements of published files. roles: those that the names of the tokens do not tell; None is
  that there is no such token. ends: ids that end a text, beside the roles'."""

  roles: Mapping[str, int | None] = {}
  ends: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Vocab:
  """The size of a vocabulary and the roles of its tokens; numpy only, picklable.

  A role that the vocabulary lacks is None.
  special: bool [V], the token is not text.
  word_start: bool [V], the token begins a word or is special. WordPiece: no "##"; byte pairs: "Ġ"
    (fairseq's rule: a text's first word counts only with `prefix_space`); unigram: "▁". None for
    GPT-1, whose tokens mark ends of words.
  counts: int [V], frequencies in the training text, if a run has set them.
  sentinels: int32 [n], the ids of <extra_id_0>, <extra_id_1>, ...
  ngrams: the n-grams of every token, flat int32 [N], and their bounds int64 [V + 1]; None without.
  languages: the ids of language codes. full_stop: bool [V], the token is a full stop.
  ends: further ids that end a text (LLaMA 3: the end of a turn).
  """

  size: int
  pad: int | None = None
  unk: int | None = None
  cls: int | None = None
  sep: int | None = None
  mask: int | None = None
  bos: int | None = None
  eos: int | None = None
  special: np.ndarray
  word_start: np.ndarray | None
  counts: np.ndarray | None = None
  sentinels: np.ndarray | None = None
  languages: dict[str, int] = field(default_factory=dict)
  full_stop: np.ndarray | None = None
  ends: tuple[int, ...] = ()
  ngrams: tuple[np.ndarray, np.ndarray] | None = None

  @property
  def begin(self) -> list[int]:
    """The token before a text, [CLS] or else <s>; empty where there is none (T5, GPT-1)."""
    token = self.bos if self.cls is None else self.cls
    return [] if token is None else [token]

  @property
  def end(self) -> list[int]:
    """The token after a text, [SEP] or else </s>; empty where there is none (GPT-1)."""
    # Only XLNet's vocabulary has both with different ids; [SEP] is the partner of its [CLS].
    token = self.eos if self.sep is None else self.sep
    return [] if token is None else [token]

  def frame(self, padding: bool = True) -> tuple[int, int]:
    """The tokens before and after a text, for rows that require them.

    padding: require a padding token too (LLaMA has none). Errors: `UserError` if one is missing.
    """
    if not (self.begin and self.end) or (padding and self.pad is None):
      raise UserError(
        "rows need a tokenizer with tokens for the begin and the end of a text and for padding, "
        "and this one lacks one of them; take another tokenizer or train one"
      )
    return self.begin[0], self.end[0]

  @property
  def filler(self) -> int:
    """The token that fills a row, to which nothing attends: padding, else the end, else any."""
    return next(iter(self.end), 0) if self.pad is None else self.pad

  @property
  def frame_ids(self) -> list[int]:
    """The ids that begin, end, separate or pad texts, without repetition."""
    ids = dict.fromkeys((self.pad, self.cls, self.sep, self.bos, self.eos, *self.ends))
    return [i for i in ids if i is not None]
