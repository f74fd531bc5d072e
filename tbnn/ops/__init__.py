"""Pure functions on tensors. One folder per op: its definition, its CPU kernels, and the function that picks."""
