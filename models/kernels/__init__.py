"""CPU convolutions, compiled C kernels, and the choice between them."""
