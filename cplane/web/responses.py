"""JSON responses."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


class LocatedJsonResponse(Response):
    """Encoded JSON with a Location header, for the most frequent response: its headers are known, none is derived."""

    def __init__(self, body: bytes, status: int, location: str) -> None:  # Response.__init__ would derive the headers
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"location", location.encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def json_response(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a model as JSON."""
    return Response(model.model_dump_json(), status, headers, "application/json")
