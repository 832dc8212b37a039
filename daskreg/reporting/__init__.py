"""The parts of the report's page: which slices, their voxels, pictures of them, curves, and the template."""
