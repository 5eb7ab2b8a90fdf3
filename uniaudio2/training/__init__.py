"""Training: data, trainers and recipes."""
