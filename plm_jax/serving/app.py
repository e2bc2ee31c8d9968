"""The routes of a server. `create_app` makes the application of its models."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from plm_jax.decode.writer import opening
from plm_jax.serving import documentation, openai
from plm_jax.serving.bodies import (
  AttentionBody,
  FillMaskBody,
  GenerateBody,
  PredictBody,
  RulesBody,
  TextsBody,
)
from plm_jax.serving.guard import error_body, error_headers
from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.metrics import Metrics
from plm_jax.serving.model import ServedModel, Writing
from plm_jax.serving.requests import Models, checked_rules, events, listed, whole

LOG = logging.getLogger("plm_jax.serving")
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def create_app(models: Sequence[ServedModel], limits: Limits, metrics: Metrics) -> FastAPI:
  """The application, without its guard."""
  app = FastAPI(title="plm_jax", docs_url=None, redoc_url=None, description=documentation.INTRO)
  served = app.state.served = Models(models, limits)
  _add_errors(app)
  _add_uses(app, served)
  _add_texts(app, served)
  openai.add_routes(app, served)
  _add_pages(app, served, metrics)
  return app


def _add_errors(app: FastAPI) -> None:
  def answer(refused: Refused) -> JSONResponse:
    return JSONResponse(error_body(refused), refused.status, headers=error_headers(refused))

  @app.exception_handler(Refused)
  async def refused(_: Request, error: Refused) -> JSONResponse:
    return answer(error)

  @app.exception_handler(RequestValidationError)
  async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if "json" not in request.headers.get("content-type", ""):
      return answer(Refused(415, "send JSON, with the header content-type: application/json"))
    if first["type"] == "json_invalid":
      why = first.get("ctx", {}).get("error", "")
      return answer(Refused(400, f"the body is no JSON: {why}"))
    place = first["loc"][1:]
    if not place:
      return answer(Refused(422, "the body is required to be a JSON object"))
    fields = [each["loc"][1:2] for each in error.errors()]
    if fields.count(place[:1]) > 1:  # an error for each type that the field may have
      return answer(Refused(422, f"{place[0]} has none of the types that /docs lists for it"))
    return answer(Refused(422, f"{'.'.join(map(str, place))}: {first['msg']}"))

  @app.exception_handler(HTTPException)
  async def http(request: Request, error: HTTPException) -> JSONResponse:
    if error.status_code in (404, 405):
      where = f"{request.method} {request.url.path}"
      return answer(Refused(error.status_code, f"there is no {where}; /docs lists the routes"))
    return answer(Refused(error.status_code, f"the request cannot be read: {error.detail}"))

  @app.exception_handler(Exception)
  async def failed(_: Request, error: Exception) -> JSONResponse:
    LOG.error("a request failed", exc_info=error)
    return answer(Refused(500, "the server failed to answer this request; its log has the reason"))


def _add_uses(app: FastAPI, served: Models) -> None:
  @app.post("/predict", summary="Predictions of a fine-tuned model")
  async def predict(body: PredictBody, request: Request) -> dict[str, Any]:
    model = served.chosen(body.model, "predict")
    made = await served.answer(request, model.compute("predict", listed(body.inputs)))
    return {"model": model.name, "predictions": made}

  @app.post("/encode", summary="Vectors of texts")
  async def encode(body: TextsBody, request: Request) -> dict[str, Any]:
    model = served.chosen(body.model, "encode")
    made = await served.answer(request, model.compute("encode", listed(body.inputs)))
    return {"model": model.name, "vectors": [vector.tolist() for vector, _ in made]}

  @app.post("/fill_mask", summary="Tokens for every [MASK] of a text")
  async def fill_mask(body: FillMaskBody, request: Request) -> dict[str, Any]:
    model = served.chosen(body.model, "fill_mask")
    made = await served.answer(request, model.compute("fill_mask", listed(body.inputs)))
    fillers = [
      [
        [{"token": token, "probability": round(p, 6)} for token, p in blank[: body.best]]
        for blank in text
      ]
      for text in made
    ]
    return {"model": model.name, "fillers": fillers}

  @app.post("/attention", summary="Attention weights of one layer and head")
  async def attention(body: AttentionBody, request: Request) -> dict[str, Any]:
    model = served.chosen(body.model, "attention")
    ((tokens, weights),) = await served.answer(request, model.compute("attention", [body.input]))
    layers, heads = weights.shape[:2]
    if body.layer > layers or body.head > heads:
      raise Refused(422, f"the model has {layers} layers and {heads} heads in each, from 1")
    chosen = weights[body.layer - 1, body.head - 1].astype(float).round(4).tolist()
    sizes = {"layers": layers, "heads": heads}
    return {"model": model.name, "tokens": tokens, **sizes, "weights": chosen}


def _add_texts(app: FastAPI, served: Models) -> None:
  @app.post("/generate", summary="Texts that follow a prompt", response_model=None)
  async def generate(body: GenerateBody, request: Request) -> dict[str, Any] | StreamingResponse:
    model = served.chosen(body.model, "generate")
    prompts = [prompt for prompt in listed(body.prompt) for _ in range(body.samples)]
    if body.stream and len(prompts) != 1:
      raise Refused(422, "one text can be streamed; send one prompt, and samples=1")
    fields = body.model_dump(include=set(RulesBody.model_fields) - {"model"})
    if "max_length" not in body.model_fields_set:
      fields["max_length"] = min(body.max_length, served.limits.tokens)
    rules = checked_rules(**fields)
    writing = await model.write(
      listed(body.prompt), rules, samples=body.samples, seed=body.seed, every=body.stream
    )
    begun = [opening(p, g.text.prompt) for p, g in zip(prompts, writing.growing, strict=True)]
    if body.stream:
      return events(_stream(writing, begun[0]))
    parts = await served.answer(request, whole(writing))
    texts = [begin + part.text for begin, part in zip(begun, parts, strict=True)]
    return {"model": model.name, "texts": texts}


async def _stream(writing: Writing, begun: str) -> AsyncIterator[dict[str, Any]]:
  yield {"text": begun}
  async with aclosing(writing.parts()) as parts:
    async for part in parts:
      if part.text:
        yield {"text": part.text}
      if part.ended:
        yield {"done": True, "ended": part.ended, "tokens": part.tokens}


def _add_pages(app: FastAPI, served: Models, metrics: Metrics) -> None:
  folder = resources.files("plm_jax.serving") / "page"
  files = {
    name: (folder / name).read_text(encoding="utf-8")
    for name in ("index.html", "page.css", "page.js")
  }

  @app.get("/", include_in_schema=False)
  async def page() -> HTMLResponse:
    return HTMLResponse(files["index.html"])

  @app.get("/page/{name}", include_in_schema=False)
  async def file(name: str) -> Response:
    if name not in files:
      raise HTTPException(404)
    return Response(files[name], media_type=_TYPES.get(name.rpartition(".")[2], "text/html"))

  @app.get("/docs", include_in_schema=False)
  async def docs() -> HTMLResponse:
    return HTMLResponse(documentation.page(app.openapi()))

  @app.get("/health", summary="Whether the server is ready")
  async def health() -> dict[str, Any]:
    served.check_running()
    return {"status": "ok", "models": list(served.by_name)}

  @app.get("/metrics", summary="Numbers for Prometheus")
  async def numbers() -> Response:
    return Response(metrics.text(), media_type="text/plain; version=0.0.4")
