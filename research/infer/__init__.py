"""Using a trained model: predictions, and directories that other tools load."""
