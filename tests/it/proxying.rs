//! `upstream:`, through a whole gateway: what passes, what does not, and what callers get when the upstream fails.

mod bodies;
mod doors;
mod faults;
mod headers;
mod limits;
mod stages;

use crate::harness::Gateway;
use crate::harness::gateway::Builder;

/// A gateway that passes everything to one upstream.
async fn passing(url: &str) -> Gateway {
    through("", url, "").start().await
}

/// Passes everything through these stages to one upstream with these further keys.
fn through(stages: &str, url: &str, keys: &str) -> Builder {
    Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{url}\" }}], {keys} }} }}\n\
         cors: {{ default: {{ origins: [\"https://app.example\"], credentials: true, expose: [X-Request-ID] }} }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: back, chain: [{stages}], public: true }}\n"
    ))
}
