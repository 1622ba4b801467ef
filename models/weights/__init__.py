"""Checkpoint files: save, load safely, import from other projects, and export."""
