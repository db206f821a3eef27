"""How the queues stand."""

from starlette.responses import Response

from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import QueueList, QueueView


async def list_queues(request: ApiRequest) -> Response:
    """Every queue with its numbers, and how much was set aside."""
    stands = await request.plane.queues()
    views = [QueueView(name=each.queue, due=each.due, later=each.later, lag=each.lag_s) for each in stands]
    return json_response(QueueList(queues=views, aside=await request.plane.count_aside()))
