"""Recordings on disk, read in the Sensorium 2022 and Franke 2022 layouts, and batches of their trials."""
