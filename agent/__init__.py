"""The program on the device: verifies, runs and watches the model, and loses no count."""
