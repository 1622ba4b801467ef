"""Everything that moves data: configuration, storage, datasets, training, segmentation, tables."""
