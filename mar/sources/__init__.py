"""Where images come from: data sources list and check them, and hold some out."""
