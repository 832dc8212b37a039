"""Operations on voxels: one package per operation, one body for CPU and CUDA, cooperative CUDA kernels beside it."""
