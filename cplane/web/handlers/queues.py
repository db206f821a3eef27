"""The state of the queues."""

from starlette.responses import Response

from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import QueueList, QueueView


async def list_queues(request: ApiRequest) -> Response:
    """Every queue with its numbers, and the number of dead letters."""
    views = [
        QueueView(
            name=each.queue,
            ready=each.ready,
            scheduled=each.scheduled,
            running=each.running,
            latency_s=each.latency_s,
        )
        for each in await request.plane.queues()
    ]
    return json_response(QueueList(queues=views, dead_letters=await request.plane.dead_letters.count()))
