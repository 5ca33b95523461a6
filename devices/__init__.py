"""Device profiles, and many devices at once: the simulator and the demonstration."""
