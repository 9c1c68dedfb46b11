"""HTTP: routes, middleware and the OpenAPI document."""
