"""Latent caches: on the device, in host memory for branches, on disk for saved conversations."""
