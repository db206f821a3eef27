"""The hosts that jobs wait for."""

from starlette.responses import Response

from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import HostList, HostView


async def list_hosts(request: ApiRequest) -> Response:
    """The hosts that are limited now; those that somebody waited for last come first."""
    views = [
        HostView(
            host=each.host,
            running=each.in_use,
            concurrency=each.concurrency or None,
            rate=each.rate or None,
            waiting=each.waiting,
            next_start=each.next_start_s,
            cooldown=each.cooldown_s,
        )
        for each in await request.plane.limiter_stats()
    ]
    return json_response(HostList(hosts=views))
