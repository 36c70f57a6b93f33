"""Images: how they are found, decoded, read in order, and written."""
