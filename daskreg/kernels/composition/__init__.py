"""Composition of displacement fields."""
