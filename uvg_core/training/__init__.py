"""Training: little rendered worlds, the losses of both streams, and the recipe of the embedded model."""
