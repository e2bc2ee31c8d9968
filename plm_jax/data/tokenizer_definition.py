"""Checks of a published tokenizer.json before the library reads it: ids, types and sizes.

The library gives impossible ids other values, panics on merges of unknown tokens, and follows rules
that multiply a text until memory is full.
"""

from pathlib import Path
from typing import Any

from plm_jax.data.tokenizer_options import MOST_ADDED
from plm_jax.errors import UserError

MOST_GROWTH = 256  # characters that a rule may make of one
MOST_RULES = 64  # normalizers and pre-tokenizers
MOST_PATTERN = 4096  # characters of a regular expression
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def check_ids(vocab: object, file: Path) -> None:
  """Errors: `UserError` unless a vocabulary gives every token an id, with few holes between."""
  ids = list(vocab.values()) if isinstance(vocab, dict) else []
  if not ids or not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(ids):
    raise UserError(f"The tokenizer file {file} cannot be read: expected one id for each token.")
  if max(ids) >= 2 * len(ids) + MOST_ADDED:
    token = max(vocab, key=vocab.__getitem__)
    raise UserError(
      f"The tokenizer file {file} gives the token {token!r} the id {max(ids)}, and it has "
      f"{len(ids)} tokens."
    )


def check_definition(rules: dict[str, Any], file: Path) -> None:
  """Errors: `UserError` naming an entry with an impossible value. Fills in absent added tokens."""
  model = rules.get("model")
  kind = model.get("type") if isinstance(model, dict) else None
  if kind not in ("WordPiece", "BPE"):
    raise UserError(
      f"{file} cannot be read: it contains a {kind or 'nameless'} model; expected WordPiece or BPE;"
      " a unigram model is read from its .model file."
    )
  check_ids(model.get("vocab"), file)
  unk = model.get("unk_token")
  if unk not in model["vocab"] and (unk is not None or kind == "WordPiece"):
    raise UserError(f"{file} has the unknown token {unk!r}, which its vocabulary lacks.")
  if model.get("dropout"):
    raise UserError(f"{file} sets dropout={model['dropout']!r}: the ids of a text would be random.")
  _check_added(rules, file)
  growth = _growth([rules.get("normalizer"), rules.get("pre_tokenizer")], file)
  if growth > MOST_GROWTH:
    raise UserError(f"{file} has rules that make {growth:,.0f} characters of one; it is refused.")


def _check_added(rules: dict[str, Any], file: Path) -> None:
  tokens = rules.setdefault("added_tokens", [])
  if not isinstance(tokens, list) or len(tokens) > MOST_ADDED:
    raise UserError(f"{file} has no list of at most {MOST_ADDED} added_tokens.")
  most = 2 * (len(rules["model"]["vocab"]) + len(tokens)) + MOST_ADDED
  for token in tokens:
    named = isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"]
    if not named or not all(isinstance(token.get(flag, False), bool) for flag in FLAGS):
      raise UserError(f"{file} adds {token!r}, which is no token.")
    if type(token.get("id")) is not int or not 0 <= token["id"] < most:
      raise UserError(
        f"{file} adds the token {token['content']!r} with the id {token.get('id')!r}; its "
        f"vocabulary has {len(rules['model']['vocab'])} tokens."
      )


def _growth(rules: Any, file: Path) -> float:
  """The most characters that rules, one after the other, make of one character."""
  growth, left, waiting = 1.0, MOST_RULES, list(reversed(rules))
  while waiting:
    rule = waiting.pop()
    if rule is None:
      continue
    left -= 1
    if not isinstance(rule, dict) or left < 0:
      raise UserError(f"{file} has rules that are no objects, or more than {MOST_RULES}.")
    inner = rule.get("normalizers") or rule.get("pretokenizers") or []
    waiting += reversed(inner if isinstance(inner, list) else [inner])
    pattern = rule.get("pattern")
    pattern = next(iter(pattern.values()), "") if isinstance(pattern, dict) else pattern or ""
    content = rule.get("content") or rule.get("prepend") or ""
    if not isinstance(content, str) or not isinstance(pattern, str) or len(pattern) > MOST_PATTERN:
      raise UserError(f"{file} has a rule {rule.get('type')!r} with an impossible pattern.")
    if rule.get("type") == "Replace":
      literal = "String" in (rule.get("pattern") or {})
      growth *= max(1.0, len(content) / (max(1, len(pattern)) if literal else 1))
  return growth
