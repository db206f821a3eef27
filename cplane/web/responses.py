"""JSON responses from pydantic models."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


def json_response(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A model as JSON."""
    return Response(model.model_dump_json(), status, headers, "application/json")
