"""Maps from fixed to moving points: linear maps, chains with displacements, inverses, determinants, and searches for a start."""
