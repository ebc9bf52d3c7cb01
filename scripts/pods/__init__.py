"""Recipes that run a command on all hosts of TPU slices: GKE with JobSet or XPK, and SkyPilot. See docs/pods.md."""
