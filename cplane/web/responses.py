"""JSON responses."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


class JsonAt(Response):
    """JSON that is ready, with its address. All of its headers are known: none has to be looked for, for what is answered most often."""

    def __init__(self, body: bytes, status: int, location: str) -> None:  # Response's own would do the looking
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"location", location.encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def json_response(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A model as JSON."""
    return Response(model.model_dump_json(), status, headers, "application/json")
