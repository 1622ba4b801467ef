"""Checkpoint files: saving, safe loading, import from other projects, and export."""
