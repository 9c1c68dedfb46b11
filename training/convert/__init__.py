"""Recordings from the files that labs already have, NWB and arrays, and recordings to NWB."""
