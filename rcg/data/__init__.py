"""Images, augmentation, views, loading, and the store of computed tensors."""
