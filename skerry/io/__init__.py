"""The two small clients that customers import: predict, and consume telemetry."""
