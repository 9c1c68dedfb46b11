"""Scores of a twin on test trials, reports, submissions and learned ensembles."""
