"""From a volume and a concept to a segmentation: encoder, feature store, detector, propagator, fusion,
session."""
