"""The built-in jobs. They are written against public names only, as a customer would write them."""

from cplane.tasks.content import content
from cplane.tasks.links import links
from cplane.tasks.pdf import pdf
from cplane.tasks.scrape import scrape
from cplane.tasks.screenshot import screenshot

__all__ = ["content", "links", "pdf", "scrape", "screenshot"]
