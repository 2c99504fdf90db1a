"""A package whose tasks nobody imports by name."""
