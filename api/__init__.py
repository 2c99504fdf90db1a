"""What the application does now."""
