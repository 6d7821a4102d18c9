//! Targets: where a route ends.
