"""What happens at a voxel: one file an operation, one body for CPU and CUDA."""
