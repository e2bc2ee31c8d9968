"""A connection of the server, where uvicorn has no option: slow headers, and errors in JSON.

uvicorn waits for the headers of a request as long as its client takes, and answers what is no HTTP
in plain text. Here headers have limits of time and of size, and the errors have their sentence.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from plm_jax.serving.guard import response
from plm_jax.serving.limits import Refused

MOST_HEADERS = 1 << 16  # bytes


class Connection(HttpToolsProtocol):
  """seconds: for the headers of a request, from its first byte; and for that first byte."""

  def __init__(self, *arguments: Any, seconds: float, **settings: Any):
    super().__init__(*arguments, **settings)
    self._seconds, self._has_begun, self._header_bytes = seconds, False, 0
    self._timer: asyncio.TimerHandle | None = None

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    if self._has_begun and not self.transport.is_closing():
      self._header_bytes += len(data)
      if self._header_bytes > MOST_HEADERS:
        text = f"the headers of the request have more than {MOST_HEADERS:,} bytes"
        self._refuse(Refused(431, text))

  def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
    super().connection_made(transport)
    self._expect_headers()

  def on_message_begin(self) -> None:
    super().on_message_begin()
    self._has_begun, self._header_bytes = True, 0
    self._expect_headers()

  def on_headers_complete(self) -> None:
    self._has_begun = False
    self._stop()
    super().on_headers_complete()

  def on_response_complete(self) -> None:
    super().on_response_complete()
    if not self._has_begun:  # else the next request has its time already
      self._expect_headers()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop()
    super().connection_lost(exc)

  def send_400_response(self, msg: str) -> None:
    self._refuse(Refused(400, "the request cannot be read: it is no valid HTTP"))

  def _expect_headers(self) -> None:
    self._stop()
    self._timer = self.loop.call_later(self._seconds, self._late)

  def _stop(self) -> None:
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None

  def _late(self) -> None:
    if self.cycle is not None and not self.cycle.response_complete:
      self._expect_headers()  # the request before it is being answered
    elif self._has_begun:
      self._refuse(Refused(408, "the headers of the request did not arrive in time"))
    else:
      self.transport.close()

  def _refuse(self, refused: Refused) -> None:
    self._stop()
    headers, content = response(refused, close=True)
    status = f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}\r\n".encode()
    lines = [b"%s: %s\r\n" % pair for pair in [*self.server_state.default_headers, *headers]]
    self.transport.write(b"".join([status, *lines, b"\r\n", content]))
    self.transport.close()
