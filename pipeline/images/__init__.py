"""Decoding and encoding of images and masks, independent of Ray."""
