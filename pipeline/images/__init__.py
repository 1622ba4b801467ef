"""Decoding and encoding of images and masks; nothing of Ray."""
