"""The service: serves exported digital twins of mouse visual cortex. Needs no torch."""
