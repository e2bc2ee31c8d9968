"""The routes of OpenAI's API that other programs know: models, completions and embeddings."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from plm_jax.serving.bodies import CompletionBody, EmbeddingBody
from plm_jax.serving.limits import Refused
from plm_jax.serving.model import Part, Writing
from plm_jax.serving.requests import Models, checked_rules, events, listed

MOST_STOPS = 4


def _length(body: CompletionBody, most: int) -> int:
  """The number of new tokens; the default of OpenAI is no more than the server writes."""
  if body.max_tokens is None:
    return most
  return body.max_tokens if "max_tokens" in body.model_fields_set else min(body.max_tokens, most)


def add_routes(app: FastAPI, served: Models) -> None:
  @app.get("/v1/models", summary="The models and what each can do")
  async def models() -> dict[str, Any]:
    return {"object": "list", "data": [_described(model) for model in served.by_name.values()]}

  @app.post("/v1/embeddings", summary="Vectors of texts, as in OpenAI's API")
  async def embeddings(body: EmbeddingBody, request: Request) -> dict[str, Any]:
    model = served.chosen(body.model, "encode")
    made = await served.answer(request, model.compute("encode", listed(body.input)))
    data = [
      {"object": "embedding", "index": n, "embedding": _encoded(vector, body.encoding_format)}
      for n, (vector, _) in enumerate(made)
    ]
    tokens = sum(count for _, count in made)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}

  @app.post("/v1/completions", summary="Texts, as in OpenAI's API", response_model=None)
  async def completions(
    body: CompletionBody, request: Request
  ) -> dict[str, Any] | StreamingResponse:
    model = served.chosen(body.model, "generate")
    stops = listed(body.stop or [])
    if len(stops) > MOST_STOPS or "" in stops:
      raise Refused(422, f"stop has {len(stops)} texts; expected {MOST_STOPS} at most, none empty")
    rules = checked_rules(
      temperature=body.temperature or 0.0,
      top_p=body.top_p if body.top_p and body.temperature else 1.0,
      max_length=_length(body, model.limits.tokens),
    )
    seed = secrets.randbelow(2**32) if body.seed is None else body.seed
    prompts = listed(body.prompt)
    # A stop ends a text, so all are watched while they grow.
    every = body.stream or bool(stops)
    writing = await model.write(prompts, rules, samples=body.n, seed=seed, every=every)
    head = {
      "id": f"cmpl-{secrets.token_hex(12)}",
      "object": "text_completion",
      "created": int(time.time()),
      "model": model.name,
    }
    begun = [prompt if body.echo else "" for prompt in prompts for _ in range(body.n)]
    parts = _choices(writing, stops, begun)
    if body.stream:
      return events(({**head, "choices": [choice]} async for choice in parts), end="[DONE]")
    choices = await served.answer(request, _joined(parts))
    read, written = writing.tokens
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {**head, "choices": choices, "usage": usage}


def _described(model: Any) -> dict[str, Any]:
  """A model for clients of OpenAI's API, and for the page."""
  own: dict[str, Any] = {"abilities": model.abilities, "max_tokens": model.limits.tokens}
  if model.task is not None:
    own |= {"task": model.task.name, "question": model.task.question}
    own |= {"line": model.task.line, "texts": model.kinds["predict"].texts}
  if "generate" in model.abilities:
    own["reads_source"] = hasattr(model.run.config, "source_ids")
  for name in ("layers", "heads"):
    if "attention" in model.abilities and hasattr(model.run.config, name):
      own[name] = getattr(model.run.config, name)
  head = {"id": model.name, "object": "model", "created": model.loaded, "owned_by": "plm_jax"}
  return head | own


def _encoded(vector: np.ndarray, form: str) -> Any:
  if form == "float":
    return vector.tolist()
  return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def _choices(
  writing: Writing, stops: list[str], begun: list[str]
) -> AsyncIterator[dict[str, Any]]:
  """The parts of all texts. A text ends before the first of `stops`, of which no part is sent."""
  texts = [StoppedText(stops) for _ in writing.growing]
  for number, text in enumerate(begun):
    if text:
      yield _choice(number, text, None)
  async with aclosing(writing.parts()) as parts:
    async for part in parts:
      text = texts[part.number]
      if not text.ended:
        sent = text.further(part)
        if text.ended and part.ended is None:
          writing.stop(part.number)
        if sent or text.ended:
          yield _choice(part.number, sent, text.ended)


def _choice(number: int, text: str, ended: str | None) -> dict[str, Any]:
  return {"index": number, "text": text, "logprobs": None, "finish_reason": ended}


async def _joined(parts: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
  whole: dict[int, dict[str, Any]] = {}
  async for part in parts:
    old = whole.get(part["index"])
    whole[part["index"]] = part if old is None else {**part, "text": old["text"] + part["text"]}
  return [whole[index] for index in sorted(whole)]


class StoppedText:
  """A growing text that ends before the first of `stops`. ended: why, once it has."""

  def __init__(self, stops: list[str]):
    self._stops, self._held = stops, ""
    self.ended: str | None = None

  def further(self, part: Part) -> str:
    """What can be sent: not the begin of a stop, until it turns out to be none."""
    text, self.ended = self._held + part.text, part.ended
    places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
    if places:
      self.ended = "stop"
      return text[: min(places)]
    held = 0
    if not part.ended:
      held = max((_overlap(text, stop) for stop in self._stops), default=0)
    self._held = text[len(text) - held :]
    return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
  """The most characters at the text's end with which `stop` begins."""
  sizes = range(min(len(text), len(stop) - 1), 0, -1)
  return next((size for size in sizes if text.endswith(stop[:size])), 0)
