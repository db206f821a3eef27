"""The state of the queues."""

from starlette.responses import Response

from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import QueueList, QueueView


async def list_queues(request: ApiRequest) -> Response:
    """Return every queue with its stats, and the number of dead letters."""
    views = [
        QueueView(
            name=stats.queue,
            ready=stats.ready,
            scheduled=stats.scheduled,
            running=stats.running,
            latency_s=stats.latency_s,
        )
        for stats in await request.plane.queues()
    ]
    return json_response(QueueList(queues=views, dead_letters=await request.plane.dead_letters.count()))
