"""Lingering close: a client that still sends its body can read the response before the connection is closed."""

import asyncio
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LINGER_TIMEOUT_S = 2.0
"""How long the rest of a refused body is read and discarded."""


class LingeringResponse(Response):
    """A response that is followed by a close of the connection, although the request's body has not been read.

    An immediate close while the client still sends resets the connection, and the client may never see the response.
    The response body is complete (it has a Content-Length); only the end of the exchange is delayed.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  the signature is Starlette's
        """Send the response, discard what still arrives, then end the exchange."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_TIMEOUT_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
