"""The schedule: queues, leases, events and limits in Redis, as Lua scripts on arq's keys."""
