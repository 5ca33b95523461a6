"""What all programs of Skerry share: pure logic, no I/O; the only package to import."""
