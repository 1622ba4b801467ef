"""Convolutions for CPUs, the compiled C kernels, and the choice between them."""
