"""The deformable stage with its fields out of the device's memory: slab after slab along z, one or more iterations a sweep."""
