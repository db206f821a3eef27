"""The hosts that jobs wait for."""

from starlette.responses import Response

from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import HostList, HostView


async def list_hosts(request: ApiRequest) -> Response:
    """Return the hosts that are limited now, those with the latest waiter first."""
    views = [
        HostView(
            host=stats.host,
            running=stats.in_use,
            concurrency=stats.concurrency or None,
            rate=stats.rate or None,
            waiting=stats.waiting,
            next_start=stats.next_start_s,
            cooldown=stats.cooldown_s,
        )
        for stats in await request.plane.limiter_stats()
    ]
    return json_response(HostList(hosts=views))
