"""What the operators compute, on contiguous tensors without autograd."""
