"""The service: serves bundles over HTTP. Needs no torch, and imports neither `training` nor `v1t_client`."""
