"""What surrounds every request: the key, the size of its body, its time, and the headers.

A middleware of ASGI. A body is read here, up to the limit, before any route sees it; so a huge or
slow one costs no more memory and time than the limits say.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/", "/health", "/docs", "/openapi.json")  # without a key, besides the page's files
_HEADERS = (
  (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
)


class _Left(Exception):
  """The client has left while it sent its body."""


class Guard:
  """The application behind its guard. key: None admits everyone."""

  def __init__(self, app: Any, limits: Limits, metrics: Metrics, key: str | None):
    self._app, self._limits, self._metrics = app, limits, metrics
    self._key = None if key is None else f"Bearer {key}".encode()

  @property
  def served(self) -> Any:
    """The `Models` of the application."""
    return self._app.state.served

  async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    if scope["method"] == "HEAD":  # the server leaves out the body
      scope = {**scope, "method": "GET"}
    start, status = time.perf_counter(), [0]

    async def sent(message: Message) -> None:
      if message["type"] == "http.response.start":
        status[0] = message["status"]
        message = {**message, "headers": [*message["headers"], *_HEADERS]}
      await send(message)

    try:
      self._check_key(scope)
      body = await asyncio.wait_for(self._body(scope, receive), self._limits.timeout)
      await self._app(scope, _replayed(body, receive), sent)
    except _Left:
      return
    except TimeoutError:
      await _answer(sent, Refused(408, "the body did not arrive in time"), close=True)
    except Refused as refused:
      await _answer(sent, refused, close=refused.status == 413)
    finally:
      route = getattr(scope.get("route"), "path", "other")
      self._metrics.requests.labels(route, status[0] or 499).inc()
      self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

  def _check_key(self, scope: Message) -> None:
    path = scope["path"]
    if self._key is None or path in OPEN or path.startswith("/page/"):
      return
    given = dict(scope["headers"]).get(b"authorization", b"")
    if not hmac.compare_digest(given, self._key):
      raise Refused(401, "this server needs a key: send the header Authorization: Bearer KEY")

  async def _body(self, scope: Message, receive: Receive) -> bytes:
    parts, size, most = [], 0, self._limits.body
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > most:
      raise Refused(413, f"the body has {int(declared):,} bytes; expected {most:,} at most")
    while True:
      message = await receive()
      if message["type"] == "http.disconnect":
        raise _Left
      parts.append(message.get("body", b""))
      size += len(parts[-1])
      if size > most:
        raise Refused(413, f"the body has more than {most:,} bytes; send less")
      if not message.get("more_body"):
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
  """Gives the body that is read already, and then what follows: that the client leaves."""
  waiting = [{"type": "http.request", "body": body, "more_body": False}]

  async def again() -> Message:
    return waiting.pop() if waiting else await receive()

  return again


def error_body(refused: Refused) -> dict[str, Any]:
  """The content of an error, in OpenAI's schema."""
  kind = "server_error" if refused.status >= 500 else "invalid_request_error"
  return {"error": {"message": refused.sentence, "type": kind, "code": refused.status}}


def error_headers(refused: Refused) -> dict[str, str]:
  if refused.status in (429, 503):
    return {"retry-after": "1"}
  return {"www-authenticate": "Bearer"} if refused.status == 401 else {}


def response(refused: Refused, close: bool) -> tuple[list[tuple[bytes, bytes]], bytes]:
  """The headers and the body of an error. close: ends the connection."""
  content = json.dumps(error_body(refused)).encode()
  headers = {"content-type": "application/json", "content-length": str(len(content))}
  headers |= error_headers(refused) | ({"connection": "close"} if close else {})
  return [(name.encode(), value.encode()) for name, value in headers.items()], content


async def _answer(send: Send, refused: Refused, close: bool) -> None:
  headers, content = response(refused, close)
  await send({"type": "http.response.start", "status": refused.status, "headers": headers})
  await send({"type": "http.response.body", "body": content})
