"""The HTML report of a run: slices, pictures, loss curves, numbers and the page's template."""
