//! Parts of the work that are announced in the manifest's format and not built yet: what a refused key waits for.

/// Breaker, retry, fallback, cache, canary.
pub const UPSTREAMS: &str = "Upstreams that fail, and nobody notices";
/// OpenAPI, documentation pages, tests in the manifest.
pub const DOCUMENTS: &str = "Documents that can't be wrong";
