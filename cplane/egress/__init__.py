"""Egress: the addresses that jobs' pages can reach, and the proxy in the worker that enforces it."""

from cplane.egress.gate import Gate
from cplane.egress.proxy import EgressProxy
from cplane.egress.rules import Blocked, EgressRules, Entry, Failed
from cplane.egress.upstream import Upstream

__all__ = ["Blocked", "EgressProxy", "EgressRules", "Entry", "Failed", "Gate", "Upstream"]
