"""Values and gradients of an image at mapped points."""
