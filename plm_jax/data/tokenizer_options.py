"""The files beside a published vocabulary: every entry is read, known to change no id, or refused.

tokenizer_config.json, special_tokens_map.json, added_tokens.json, and the special tokens of
config.json and generation_config.json. Source: transformers 5.24, tokenization_utils_base.py
(`_from_pretrained`) and the families' tokenizers. As there, special_tokens_map.json is for files
without `added_tokens_decoder`, and replaces tokenizer_config.json in them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax.data.published_folder import object_in
from plm_jax.errors import UserError

CONFIG, MAP, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MODEL, GENERATION = "config.json", "generation_config.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MOST_ADDED = 10_000  # tokens beside the vocabulary

# They change the rows that transformers makes of ids, decoded text, or nothing at all.
_SILENT = """
_commit_hash add_eos_token auto_map backend chat_template clean_up_tokenization_spaces
cls_token_segment_id device_map errors fix_mistral_regex full_tokenizer_file is_local
language_codes legacy legacy_behaviour local_files_only mask_padding_with_zero max_len max_length
merges_file model_input_names model_max_length name_or_path pad_to_max_length pad_to_multiple_of
pad_token_segment_id pad_token_type_id padding padding_side processor_class
sequence_a_segment_id sequence_b_segment_id spaces_between_special_tokens special_tokens_map_file
src_lang stride tgt_lang tokenizer_class tokenizer_file tokenizer_version transformers_version
trim_offsets truncation truncation_side truncation_strategy unsloth_version
use_default_system_prompt use_fast verbose vocab_file
"""
SILENT = frozenset(_SILENT.split())
# They would change the ids with any other value.
PLAIN: dict[str, tuple[Any, ...]] = {
  "clean_text": (True,),
  "do_basic_tokenize": (True,),
  "do_subword_tokenize": (True,),
  "do_word_tokenize": (True,),
  "mecab_kwargs": (None,),
  "never_split": (None, []),
  "normalize": (False,),
  "normalization": (False,),
  "remove_space": (True,),
  "sp_model_kwargs": ({}, None),
  "split_special_tokens": (False,),
  "subword_tokenizer_type": ("wordpiece",),
  "word_tokenizer_type": ("basic",),
  "wordpieces_prefix": ("##",),
}
_OF_GENERATION = """
_commit_hash _from_model_config assistant_confidence_threshold assistant_early_exit
assistant_ensemble_weight assistant_lookbehind attn_implementation bad_words_ids
begin_suppress_tokens bos_token_id cache_config cache_implementation chat_format compile_config
constraints continuous_batching_config decoder_start_token_id disable_compile diversity_penalty
do_sample dola_layers early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids
forced_bos_token_id forced_decoder_ids forced_eos_token_id generation_kwargs guidance_scale
is_assistant length_penalty low_memory max_cache_len max_length max_matching_ngram_size
max_new_tokens max_time max_window_size min_length min_new_tokens min_p no_repeat_ngram_size
num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences
output_attentions output_hidden_states output_logits output_scores pad_token_id penalty_alpha
prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
repetition_penalty return_dict_in_generate sequence_bias speculation_type stop_strings
suppress_tokens target_lookbehind temperature token_healing top_h top_k top_p transformers_version
trust_remote_code typical_p use_cache use_mtp user_id watermarking_config
"""
OF_GENERATION = frozenset(_OF_GENERATION.split())
SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "keep_accents")
SWITCHES += ("add_prefix_space", "add_bos_token")
# The families whose tokenizers clean a text: others pass over these switches.
WORD_PIECES = ("Bert", "DistilBert", "Electra", "MobileBert", "RetriBert", "ConvBert", "MPNet")
GENERIC = ("", "PreTrained", "TokenizersBackend", "PythonBackend", "SentencePieceBackend")
_CLASSES = {  # model_type -> the stem of its tokenizer's class
  "bert": "Bert",
  "electra": "Electra",
  "distilbert": "DistilBert",
  "albert": "Albert",
  "t5": "T5",
  "xlm-roberta": "XLMRoberta",
  "mbart": "MBart",
  "roberta": "Roberta",
  "bart": "Bart",
  "openai-gpt": "OpenAIGPT",
}


class AddedToken(NamedTuple):
  """A token beside the vocabulary, as in tokenizer.json."""

  content: str
  special: bool = False
  lstrip: bool = False
  rstrip: bool = False
  single_word: bool = False
  normalized: bool = True


class TokenizerOptions(NamedTuple):
  """The statements of the files; None or no entry: nothing is said.

  family: the stem of the tokenizer's class, "Bert"; "" is the class that takes tokenizer.json as it
  is. switches: of `SWITCHES`. roles: role -> token; None is that there is none. added: id -> token.
  new: special tokens without an id. sentinels: number of <extra_id_0> and on. ids: role -> id, of
  the model's files. ends: ids that end a text. configured: there is a tokenizer_config.json.
  """

  family: str = ""
  switches: Mapping[str, bool] = {}
  roles: Mapping[str, str | None] = {}
  added: Mapping[int, AddedToken] = {}
  new: tuple[AddedToken, ...] = ()
  sentinels: int | None = None
  ids: Mapping[str, int] = {}
  ends: tuple[int, ...] = ()
  configured: bool = False

  def switch(self, name: str, default: Any = None) -> Any:
    return self.switches.get(name, default)


def family_of(model_type: str | None) -> str:
  """The stem of the tokenizer's class of a model type, "" where its files say all."""
  return _CLASSES.get(str(model_type), "")


def read_options(folder: Path, model_type: str | None = None) -> TokenizerOptions:
  """The options of a folder. model_type: as in config.json, which need not be there. Errors:
  `UserError` naming the file and an entry that is unknown or has a wrong value."""
  config, where = object_in(folder, CONFIG), folder / CONFIG
  model, generation = object_in(folder, MODEL), object_in(folder, GENERATION)
  _refuse_unknown_rules(generation, folder / GENERATION)
  model_type = model_type or str(model.get("model_type"))
  named = config.get("tokenizer_class")
  named = "" if named is None else named
  if not isinstance(named, str):
    raise UserError(f"{where} sets tokenizer_class={named!r}; expected a text.")
  stem = named.removesuffix("Fast").removesuffix("Tokenizer")
  family = family_of(model_type) if not named else "" if stem in GENERIC else stem
  entries = dict(config)
  if "added_tokens_decoder" not in config:
    entries |= _of_map(folder)
  _refuse_unknown(entries, where)
  switches = {name: _truth(entries, name, where) for name in SWITCHES if name in entries}
  roles = {
    role: _content(entries[f"{role}_token"], f"{role}_token", where)
    for role in ROLES
    if f"{role}_token" in entries
  }
  ids, ends = _ids(model, generation, folder)
  return TokenizerOptions(
    family=family,
    switches={name: value for name, value in switches.items() if value is not None},
    roles=roles,
    added=_added(folder, config, entries),
    new=_new(entries, where),
    sentinels=_sentinels(entries, where),
    ids=ids,
    ends=ends,
    configured=bool(config),
  )


def _of_map(folder: Path) -> dict[str, Any]:
  """The entries of special_tokens_map.json, which are tokens and lists of them."""
  entries = object_in(folder, MAP)
  for name in entries:
    if not name.endswith(("_token", "_special_tokens")):
      raise UserError(f"{folder / MAP} sets {name}, which is no special token.")
  return entries


def _refuse_unknown(entries: Mapping[str, Any], where: Path) -> None:
  for name, accepted in PLAIN.items():
    if name in entries and entries[name] not in accepted:
      raise UserError(
        f"{where} sets {name}={entries[name]!r}, which this project does not support; it has "
        f"{name}={accepted[0]!r}."
      )
  known = {*SILENT, *PLAIN, *SWITCHES, "added_tokens_decoder", "extra_ids"}
  known |= {"additional_special_tokens", "extra_special_tokens"}
  unknown = {name for name in entries.keys() - known if not name.endswith("_token")}
  if unknown:
    name = min(unknown)
    raise UserError(
      f"{where} sets {name}={entries[name]!r}, which this project does not know; a tokenizer that "
      "ignored it might make other ids."
    )


def _refuse_unknown_rules(generation: Mapping[str, Any], where: Path) -> None:
  """generation_config.json: rules of sampling are flags of our commands; only ids are read."""
  unknown = generation.keys() - OF_GENERATION
  if unknown:
    name = min(unknown)
    raise UserError(f"{where} sets {name}={generation[name]!r}, which this project does not know.")


def _truth(entries: Mapping[str, Any], name: str, where: Path) -> bool | None:
  value = entries[name]
  if not isinstance(value, bool | None):
    raise UserError(f"{where} sets {name}={value!r}; expected true or false.")
  return value


def _content(value: Any, name: str, where: Path) -> str | None:
  """The text of a token, which is a string or an object."""
  text = value.get("content") if isinstance(value, dict) else value
  if value is not None and (not isinstance(text, str) or not text):
    raise UserError(f"{where} sets {name}={value!r}; expected a token.")
  return text


def _token(value: Any, name: str, where: Path, special: bool) -> AddedToken:
  content = _content(value, name, where)
  if content is None:
    raise UserError(f"{where} sets {name}=None; expected a token.")
  options = {"special": special, "normalized": not special}
  if isinstance(value, dict):
    given = {n: v for n, v in value.items() if n not in ("content", "__type", "id")}
    bad = [n for n, v in given.items() if n not in AddedToken._fields or not isinstance(v, bool)]
    if bad:
      raise UserError(f"{where} sets {bad[0]}={given[bad[0]]!r} of the token {content!r}.")
    options |= given
  return AddedToken(content, **options)


def _added(folder: Path, config: dict, entries: Mapping[str, Any]) -> dict[int, AddedToken]:
  """Tokens with ids: `added_tokens_decoder`, or else added_tokens.json."""
  if "added_tokens_decoder" in config:
    where, listed = folder / CONFIG, config["added_tokens_decoder"]
    pairs = listed.items() if isinstance(listed, dict) else None
  else:
    where, listed = folder / ADDED_FILE, object_in(folder, ADDED_FILE)
    pairs = [(i, content) for content, i in listed.items()]
  if pairs is None or len(pairs) > MOST_ADDED:
    raise UserError(f"{where} has no object of at most {MOST_ADDED} added tokens.")
  roles = [f"{role}_token" for role in ROLES if f"{role}_token" in entries]
  special = {_content(entries[name], name, where) for name in roles}
  special |= {token.content for token in _new(entries, where)}
  added = {}
  for i, value in pairs:
    number = int(i) if isinstance(i, str) and i.isascii() and i.isdecimal() else i
    if type(number) is not int or number < 0 or number in added:
      raise UserError(f"{where} adds {value!r} with the id {i!r}; expected a number from 0.")
    known = _content(value, f"token {i}", where) in special
    added[number] = _token(value, f"token {i}", where, known)
  return added


def _new(entries: Mapping[str, Any], where: Path) -> tuple[AddedToken, ...]:
  """Special tokens without an id: the extra ones, and those of entries such as `image_token`."""
  tokens: list[Any] = []
  for name in ("additional_special_tokens", "extra_special_tokens"):
    listed = entries.get(name) or []
    listed = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or len(listed) > MOST_ADDED:
      raise UserError(f"{where} sets {name}={listed!r}; expected a list of tokens.")
    tokens += [_token(value, name, where, special=True) for value in listed]
  own = [f"{role}_token" for role in ROLES] + ["add_bos_token", "add_eos_token"]
  for name in sorted(n for n in entries if n.endswith("_token") and n not in own):
    if entries[name] is not None:
      tokens.append(_token(entries[name], name, where, special=True))
  return tuple(dict.fromkeys(tokens))


def _sentinels(entries: Mapping[str, Any], where: Path) -> int | None:
  """T5's `extra_ids`, or else the number of <extra_id_0> and on among the extra special tokens."""
  listed = sum(token.content.startswith("<extra_id_") for token in _new(entries, where))
  count = entries.get("extra_ids", listed)
  if type(count) is not int or not 0 <= count <= MOST_ADDED:
    raise UserError(f"{where} sets extra_ids={count!r}; expected a whole number from 0.")
  if listed and count and listed != count:
    raise UserError(f"{where} sets extra_ids={count} and lists {listed} <extra_id_0> and on.")
  return (count or listed) if "extra_ids" in entries or listed else None


def _ids(model: dict, generation: dict, folder: Path) -> tuple[dict[str, int], tuple[int, ...]]:
  """The ids of begin, end and padding, and all ends: generation_config.json or else config.json."""
  ids: dict[str, int] = {}
  ends: list[int] = []
  for document, name in ((generation, GENERATION), (model, MODEL)):
    for role in ("bos", "eos", "pad"):
      value = document.get(f"{role}_token_id")
      listed = value if isinstance(value, list) and role == "eos" else [value]
      if value is None or role in ids:
        continue
      if not listed or any(type(i) is not int or i < 0 for i in listed):
        raise UserError(f"{folder / name} sets {role}_token_id={value!r}; expected ids from 0.")
      ids[role] = listed[0]
      ends += listed if role == "eos" else []
  return ids, tuple(ends)
