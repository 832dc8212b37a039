"""Compiling kernels: launchers for both devices, what identifies compiled code, and the cache of compiled code on disk."""
