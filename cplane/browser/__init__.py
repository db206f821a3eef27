"""Browsers: finding and installing one, and a pool of isolated pages. The only package that knows Playwright."""

from cplane.browser.engine.executable import Executable, Source, find_executable
from cplane.browser.engine.instance import Limits, probe
from cplane.browser.engine.launch import BrowserSource, Engine
from cplane.browser.evidence import File, collect, collect_trace
from cplane.browser.install import install
from cplane.browser.lease import PageLease
from cplane.browser.pool.pool import BrowserPool
from cplane.browser.pool.stats import PoolStats
from cplane.browser.reading import TextRefused, read_json, read_text
from cplane.jobs.page_options import Authenticate, Isolation, PageOptions, Proxy, Trace, Viewport

__all__ = [
    "Authenticate",
    "BrowserPool",
    "BrowserSource",
    "Engine",
    "Executable",
    "File",
    "Isolation",
    "Limits",
    "PageLease",
    "PageOptions",
    "PoolStats",
    "Proxy",
    "Source",
    "TextRefused",
    "Trace",
    "Viewport",
    "collect",
    "collect_trace",
    "find_executable",
    "install",
    "probe",
    "read_json",
    "read_text",
]
