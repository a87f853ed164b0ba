"""The one loop, its stages and tasks."""
