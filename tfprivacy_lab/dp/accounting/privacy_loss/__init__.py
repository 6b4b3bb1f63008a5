"""The privacy loss of one release, and what the losses of many sum up to. No TensorFlow is loaded here."""
