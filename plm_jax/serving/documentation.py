"""The page /docs: the routes of the OpenAPI description as plain HTML; nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

INTRO = (
  "Models of plm_jax: predictions, vectors, blanks and texts. Errors have the schema "
  '{"error": {"message", "type", "code"}}.'
)
_EXAMPLES = {
  "/predict": {"inputs": ["a fine film", "a dull one"]},
  "/encode": {"inputs": "a fine film"},
  "/fill_mask": {"inputs": "the [MASK] of the file", "best": 3},
  "/attention": {"input": "a fine film", "layer": 1, "head": 1},
  "/generate": {"prompt": "Once", "max_length": 32, "temperature": 0.8, "seed": 1},
  "/v1/completions": {"prompt": "Once", "max_tokens": 32, "stream": False},
  "/v1/embeddings": {"input": ["a fine film", "a dull one"]},
}


def page(description: dict[str, Any]) -> str:
  """HTML. description: of OpenAPI, which /openapi.json has for programs."""
  schemas = description.get("components", {}).get("schemas", {})
  parts = [
    _route(path, method, operation, schemas)
    for path, methods in description["paths"].items()
    for method, operation in methods.items()
  ]
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>plm_jax: routes</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/page/page.css"></head>
<body><main class="docs"><p><a href="/">The page</a> · <a href="/openapi.json">OpenAPI</a></p>
<h1>Routes</h1><p>{escape(INTRO)}</p>{"".join(parts)}</main></body></html>"""


def _route(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
  parts = [f"<section class='card'><h2><code>{method.upper()} {escape(path)}</code></h2>"]
  parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
  content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
  name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
  if fields := schemas.get(name, {}).get("properties"):
    needed = schemas[name].get("required", ())
    rows = "".join(_field(field, schema, field in needed) for field, schema in fields.items())
    parts.append(f"<table><tr><th>field</th><th>default</th><th></th></tr>{rows}</table>")
  if path in _EXAMPLES:
    body = json.dumps(_EXAMPLES[path])
    command = f"curl localhost:8000{path} -H 'content-type: application/json' -d '{body}'"
    parts.append(f"<pre>{escape(command)}</pre>")
  return "".join(parts) + "</section>"


def _field(name: str, schema: dict[str, Any], is_needed: bool) -> str:
  default = "needed" if is_needed else json.dumps(schema.get("default"))
  text = escape(schema.get("description", ""))
  return f"<tr><td><code>{escape(name)}</code></td><td>{escape(default)}</td><td>{text}</td></tr>"
