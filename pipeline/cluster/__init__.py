"""Connecting to Ray, sizing actor pools, reporting progress, and everything private of Ray."""
