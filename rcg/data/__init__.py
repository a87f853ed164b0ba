"""Images, views, loading, stores."""
