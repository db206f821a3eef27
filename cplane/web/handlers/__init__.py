"""The handlers of the HTTP API, one module a resource. `cplane.web.operations` maps each operation to its handler."""
