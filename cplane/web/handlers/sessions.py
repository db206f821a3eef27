"""Browser sessions: list, get, import, delete. Their storage state is never returned."""

import asyncio
from urllib.parse import urlencode

from starlette.responses import Response

from cplane.sessions.storage_state import MAX_BYTES, SessionState
from cplane.sessions.store import check_name
from cplane.web.body import read_body
from cplane.web.inputs import SessionQuery
from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import SessionList, session_view

SESSIONS = "/api/v1/sessions"


async def list_sessions(request: ApiRequest) -> Response:
    """Return a page of sessions."""
    query = request.query(SessionQuery)
    found = await request.plane.sessions.list(after=query.cursor or "", limit=query.limit + 1)
    page = found[: query.limit]
    cursor = page[-1].name if len(found) > len(page) else None
    headers: dict[str, str] = {}
    if cursor is not None:
        parameters = query.model_dump(exclude_unset=True, exclude_none=True) | {"cursor": cursor}
        headers["link"] = f'<{request.link(SESSIONS)}?{urlencode(parameters)}>; rel="next"'
    return json_response(
        SessionList(sessions=[session_view(session) for session in page], next=cursor), headers=headers
    )


async def get_session(request: ApiRequest) -> Response:
    """Return the metadata of a session."""
    return json_response(session_view(await request.plane.sessions.get(request.path_params["session"])))


async def import_session(request: ApiRequest) -> Response:
    """Store the body under a name, in place of what was there."""
    name: str = request.path_params["session"]
    check_name(name)
    _ = request.plane.sessions.keyring.first  # without a key, fail before the body is read
    body = await read_body(request, SessionState, max_bytes=MAX_BYTES)
    state = await asyncio.to_thread(body.model_dump, exclude_unset=True)
    session, created = await request.plane.sessions.put(name, state)
    if not created:
        return json_response(session_view(session))
    return json_response(session_view(session), 201, {"location": request.link(f"{SESSIONS}/{name}")})


async def delete_session(request: ApiRequest) -> Response:
    """Delete a session."""
    await request.plane.sessions.delete(request.path_params["session"])
    return Response(status_code=204)
