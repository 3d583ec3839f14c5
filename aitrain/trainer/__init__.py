"""From a checked recipe to a trained, evaluated and exported model."""
