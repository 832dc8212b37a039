"""Paths and URLs, atomic writing and what the system says when it fails."""
