"""Closing a connection politely: a client that still sends gets to read the answer first."""

import asyncio
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LINGER_S = 2.0
"""How long the rest of a refused body is read and thrown away."""


class LingeringResponse(Response):
    """A response after which the connection is closed, though the request's body has not been read.

    Closing at once while the client still sends resets the connection, and the client may never see the answer. The body is complete
    (it has a Content-Length), only the end of the exchange waits.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  the signature is Starlette's
        """Send the response, throw away what still comes, then end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
