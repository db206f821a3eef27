"""The HTTP API: submits jobs, returns their records, streams their artifacts.

It never runs a job, opens a page or writes SQL.
Any ASGI server runs it: `uvicorn --factory cplane.web:create_app`.
"""

from cplane.web.app import create_app
from cplane.web.server import WebServer, open_server, serve

__all__ = ["WebServer", "create_app", "open_server", "serve"]
