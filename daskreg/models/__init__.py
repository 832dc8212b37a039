"""Transform models of the deformable stage, one folder each."""
