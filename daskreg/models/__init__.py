"""Transform models of the deformable stage, one file each."""
