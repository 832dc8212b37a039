"""Adam's step."""
