"""The REST endpoints, one module a resource, each with its `router` and what only it does."""
