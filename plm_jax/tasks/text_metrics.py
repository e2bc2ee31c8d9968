"""Metrics of written texts: BLEU and chrF by sacreBLEU, ROUGE by rouge-score, exact match.

Sources: Papineni et al. 2002 and Post 2018 (BLEU), Popović 2015 (chrF), Lin 2004 (ROUGE). All are
from 0 to 100. With several references BLEU counts matches in any, chrF and ROUGE take the best.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from plm_jax.errors import UserError
from plm_jax.tasks.marks import marks

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
# Han, kana and hangul are written without spaces between words, or have long words.
_SINGLE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"


@functools.cache
def _words() -> re.Pattern[str]:
  return re.compile(rf"[{_SINGLE}]|(?:[^\W_]|[{marks()}])+")


class Scores(NamedTuple):
  """values: metric -> from 0 to 100. signatures: the settings of each, for comparisons with
  others."""

  values: dict[str, float]
  signatures: dict[str, str]


def check_installed() -> None:
  """Errors: `UserError` if a library of the extra `text` is missing."""
  libraries()


def libraries() -> tuple[Any, Any]:
  """sacrebleu.metrics and rouge_score.rouge_scorer. Errors: as `check_installed`."""
  try:
    import sacrebleu.metrics
    from rouge_score import rouge_scorer
  except ImportError as error:
    raise UserError(
      f"scores of written texts need {error.name}, which is not installed: "
      "pip install 'plm_jax[text]'."
    ) from None
  return sacrebleu.metrics, rouge_scorer


def scores_of_texts(
  outputs: Sequence[str],
  references: Sequence[Sequence[str]],
  tokens: str = "13a",
  lowercase: bool = False,
) -> Scores:
  """BLEU and chrF of all outputs together, the mean ROUGE of each. tokens: sacreBLEU's tokenisation
  for BLEU. lowercase: whether case is ignored (ROUGE always ignores it)."""
  metrics, rouge_scorer = libraries()
  values, signatures = {}, {}
  most = max(map(len, references))
  # sacreBLEU takes a list of texts for each number of a reference; "" and None are for none.
  columns = [[refs[n] if n < len(refs) else None for refs in references] for n in range(most)]
  bleu = metrics.BLEU(tokenize=tokens, lowercase=lowercase)
  chrf = metrics.CHRF(lowercase=lowercase)
  for name, metric in (("bleu", bleu), ("chrf", chrf)):
    values[name] = float(metric.corpus_score(list(outputs), columns).score)
    signatures[name] = str(metric.get_signature())
  scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=False, tokenizer=_Words())
  best = [scorer.score_multi(list(refs), text) for text, refs in zip(outputs, references)]
  for key, name in ROUGE.items():
    values[name] = 100 * float(np.mean([score[key].fmeasure for score in best]))
  signatures["rouge"] = "F of rouge-score, no stemming, words and single CJK characters"
  return Scores(values, signatures)


class _Words:
  """rouge-score's own tokenizer knows a to z only."""

  def tokenize(self, text: str) -> list[str]:
    return words_of(text)


def words_of(text: str) -> list[str]:
  """Words in lower case; a character of Chinese, Japanese or Korean is a word."""
  return _words().findall(text.lower())


def tokens_of(texts: Sequence[str]) -> str:
  """sacreBLEU's tokenisation for a language: "zh" for Chinese, "char" for Japanese and Thai, else
  "13a"."""
  text = "".join(texts[:1000])
  letters = sum(character.isalpha() for character in text) or 1
  if len(re.findall(r"[\u3040-\u30ff\u0e00-\u0e7f]", text)) > 0.2 * letters:
    return "char"
  return "zh" if len(re.findall(r"[\u3400-\u9fff]", text)) > 0.3 * letters else "13a"


def exact(output: str, references: Sequence[str], lowercase: bool = False) -> bool:
  """Whether an output is one of its references, but for white space."""

  def plain(text: str) -> str:
    text = " ".join(text.split())
    return text.lower() if lowercase else text

  return plain(output) in map(plain, references)
