"""The deformable stage with its fields out of the device's memory: slab after slab along z, a sweep for an iteration or several."""
