"""The built-in jobs. They use public names only, as user code would."""

from cplane.tasks.check import check
from cplane.tasks.content import content
from cplane.tasks.download import download
from cplane.tasks.links import links
from cplane.tasks.markdown import markdown
from cplane.tasks.pdf import pdf
from cplane.tasks.scrape import scrape
from cplane.tasks.screenshot import screenshot
from cplane.tasks.snapshot import snapshot
from cplane.tasks.steps import steps

__all__ = ["check", "content", "download", "links", "markdown", "pdf", "scrape", "screenshot", "snapshot", "steps"]
