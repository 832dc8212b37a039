"""Maps from fixed to moving points: siblings of the similarities and the optimisers."""
