"""Kernels over batches of volumes, for CPU and CUDA; without PyTorch.

Arrays are (planes, Y, X), where plane ``(b C + c) D + z`` is plane z of channel c of batch element b.
"""
