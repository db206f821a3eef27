"""Whether the process is alive, and whether it can work: what an orchestrator asks."""

from starlette.responses import Response

from cplane.web.problems import RETRY_AFTER_S
from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import Liveness, Readiness


async def livez(_: ApiRequest) -> Response:
    """The process answers."""
    return json_response(Liveness())


async def readyz(request: ApiRequest) -> Response:
    """200 when everything it depends on answers, else 503."""
    found = await request.plane.ready()
    readiness = Readiness(ready=not any(found.values()), checks={name: wrong or "ok" for name, wrong in found.items()})
    if readiness.ready:
        return json_response(readiness)
    return json_response(readiness, 503, {"retry-after": str(RETRY_AFTER_S)})
