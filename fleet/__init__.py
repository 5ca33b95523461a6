"""The central service: keeps bundles, rolls them out in stages, compares what devices saw."""
