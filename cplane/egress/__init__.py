"""Egress: what the pages of jobs may reach, and the proxy in the worker that holds them to it."""

from cplane.egress.gate import Gate
from cplane.egress.proxy import EgressProxy
from cplane.egress.rules import Blocked, EgressRules, Entry, Failed
from cplane.egress.upstream import Upstream

__all__ = ["Blocked", "EgressProxy", "EgressRules", "Entry", "Failed", "Gate", "Upstream"]
