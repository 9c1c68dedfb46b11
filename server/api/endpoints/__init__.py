"""The handlers, one file per group of routes."""
