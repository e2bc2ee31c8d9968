"""A published tokenizer: its vocabulary, the tokens added to it, and the roles that its files name.

transformers 5.24 adds tokens at their ids, and special tokens that a vocabulary lacks after it. The
begin and the end of a text are those of tokenizer_config.json, else those of the model's files,
else those with the usual names.
"""

import json
from pathlib import Path

import tokenizers

from plm_jax.data import tokenizer_files as files
from plm_jax.data.tokenizer_backends import ADDED, Fast, Pieces
from plm_jax.data.tokenizer_options import AddedToken, TokenizerOptions, family_of, read_options
from plm_jax.data.vocab import SpecialTokens
from plm_jax.errors import UserError

# Their special tokens have the usual names, whatever the ids in config.json.
NAMED = ("Roberta", "XLMRoberta", "Bart", "MBart", "Albert", "T5", "MPNet", "Bert", "DistilBert")
NAMED += ("Electra", "ConvBert", "MobileBert", "RetriBert")
FAIRSEQ = {"xlm-roberta": (), "mbart": files.MBART_LANGUAGES}  # families with other ids


def read_parts(
  path: str | Path,
  model_type: str | None = None,
  *,
  lowercase: bool | None = None,
  prefix_space: bool | None = None,
) -> tuple[Fast | Pieces, int, SpecialTokens]:
  """The backend, the number of sentinels and the roles of a published folder or file. model_type:
  as in config.json. The others are for files that do not say it. Errors: `UserError` naming a file
  and an entry."""
  path = Path(path).expanduser()
  options = TokenizerOptions(family=family_of(model_type))
  if path.is_dir():
    options = read_options(path, model_type)
  lowercase = options.switch("do_lower_case", lowercase)
  prefix_space = options.switch("add_prefix_space", prefix_space)
  backend = files.read_backend(path, options, lowercase=lowercase, prefix_space=prefix_space)
  if model_type in FAIRSEQ and isinstance(backend, Pieces):
    backend = files.in_fairseq_order(backend, FAIRSEQ[model_type])
  sentinels = options.sentinels or 0
  if isinstance(backend, Pieces):
    backend = _pieces_with_added(backend, options, path)
  else:
    backend, sentinels = _fast_with_added(backend, options, path), 0
  return backend, sentinels, _special(backend, options, path)


def _wanted(options: TokenizerOptions, ids: dict[str, int], path: Path) -> list[AddedToken]:
  """Tokens to add after a vocabulary, in the order of their ids. Errors: `UserError` for an id of
  another token, or one that would leave a hole."""
  new, size = [], max(ids.values()) + 1
  taken = {i: token for token, i in ids.items()}
  for i, token in sorted(options.added.items()):
    if ids.get(token.content, i) != i or taken.get(i, token.content) != token.content:
      raise UserError(
        f"{path} adds the token {token.content!r} with the id {i}; its vocabulary has "
        f"{ids.get(token.content)} for it, and {taken.get(i)!r} at {i}."
      )
    if i >= size + len(new):
      if i > size + len(new):
        raise UserError(
          f"{path} adds the token {token.content!r} with the id {i}, and its vocabulary with the "
          f"tokens before it ends at {size + len(new) - 1}."
        )
      new.append(token)
  known = {*ids, *(token.content for token in new)}
  named = [AddedToken(token, special=True) for token in options.roles.values() if token]
  extra = {t.content: t for t in (*options.new, *named) if t.content not in known}
  return new + list(extra.values())


def _fast_with_added(backend: Fast, options: TokenizerOptions, path: Path) -> Fast:
  model = tokenizers.Tokenizer.from_str(backend.model.to_str())
  ids = model.get_vocab(with_added_tokens=True)
  tokens = _wanted(options, ids, path)
  present = [t for i, t in sorted(options.added.items()) if ids.get(t.content) == i]
  before = {t["content"]: t for t in json.loads(model.to_str())["added_tokens"]}
  for token in [*present, *tokens]:
    if token.content in before:  # tokenizer.json has the last word on its flags
      continue
    flags = token._asdict()
    added = tokenizers.AddedToken(flags.pop("content"), **flags)
    (model.add_special_tokens if token.special else model.add_tokens)([added])
  return Fast(model.to_str()) if present or tokens else backend


def _pieces_with_added(backend: Pieces, options: TokenizerOptions, path: Path) -> Pieces:
  """Added tokens as pieces of the model: special ones are never read in a text, others always."""
  ids = {piece: i for i, piece in enumerate(backend.pieces)}
  size = len(ids)
  sentinels = {i: t for i, t in options.added.items() if t.content.startswith("<extra_id_")}
  last = size + len(sentinels) - 1
  for i, token in sentinels.items():
    if token.content != f"<extra_id_{last - i}>":
      raise UserError(f"{path} gives {token.content!r} the id {i}; expected <extra_id_{last - i}>.")
  plain = {i: t for i, t in options.added.items() if i not in sentinels}
  new = tuple(t for t in options.new if not ADDED.fullmatch(t.content))
  tokens = _wanted(options._replace(added=plain, new=new), ids, path)
  if not tokens:
    return backend
  if options.sentinels:
    raise UserError(f"{path} adds {tokens[0].content!r} to a T5's sentinels: not supported.")
  model = type(backend.model_proto).FromString(backend.proto)
  kinds = type(model.pieces[0])
  for token in tokens:
    kind = kinds.CONTROL if token.special else kinds.USER_DEFINED
    model.pieces.add(piece=token.content, score=0.0, type=kind)
  model.trainer_spec.vocab_size = len(model.pieces)
  return Pieces(model.SerializeToString(), backend.lowercase, backend.clean)


def _special(backend: Fast | Pieces, options: TokenizerOptions, path: Path) -> SpecialTokens:
  """The roles that differ from the usual names, and the ends beside the role's."""
  ids = {piece: i for i, piece in reversed(list(enumerate(backend.pieces))) if piece}
  roles = {role: None if name is None else ids[name] for role, name in options.roles.items()}
  if options.family not in NAMED:
    own = {} if isinstance(backend, Fast) else backend.roles
    for role, i in options.ids.items():
      if role not in roles and own.get(role) is None:
        roles[role] = i
    if isinstance(backend, Fast) and {"bos", "eos"} & roles.keys():
      # "<s>" is the begin of a text, unless the files say otherwise; it is no [CLS].
      usual = {r: i for r, i in backend.roles.items() if i is not None}
      roles |= {
        r: None
        for r in ("cls", "sep")
        if r not in roles and backend.pieces[usual.get(r, -1)][0] == "<"
      }
    if options.switch("add_bos_token") is False and roles.get("bos") != roles.get("eos"):
      roles |= {"bos": None, "cls": roles.get("cls") and None}
  for role, i in [*roles.items(), *(("eos", end) for end in options.ends)]:
    if i is not None and i >= len(backend.pieces):
      raise UserError(
        f"{path} sets {role}_token_id={i}, and its tokenizer has {len(backend.pieces)} tokens."
      )
  changed = {role: i for role, i in roles.items() if backend.roles[role] != i}
  present = backend.roles | changed
  known = {present[role] for role in ("cls", "sep", "bos", "eos")}
  return SpecialTokens(changed, tuple(sorted({*options.ends} - known)))
