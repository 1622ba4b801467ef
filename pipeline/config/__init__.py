"""Settings of every job, how they are loaded and checked, dataset formats and class tables."""
