"""The program that turns a model into a signed bundle, or refuses with the reason."""
