"""Health checks for an orchestrator: is the process alive, and is it ready to serve requests?"""

from starlette.responses import Response

from cplane.web.problems import RETRY_AFTER_S
from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import Liveness, Readiness


async def livez(_: ApiRequest) -> Response:
    """Return 200 while the process responds."""
    return json_response(Liveness())


async def readyz(request: ApiRequest) -> Response:
    """Return 200 while Postgres (with tables of this version) and Redis respond, else 503."""
    problems = await request.plane.ready()
    checks = {name: problem or "ok" for name, problem in problems.items()}
    readiness = Readiness(ready=not any(problems.values()), checks=checks)
    if readiness.ready:
        return json_response(readiness)
    return json_response(readiness, 503, {"retry-after": str(RETRY_AFTER_S)})
