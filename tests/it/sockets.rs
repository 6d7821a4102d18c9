//! WebSockets through the gateway, byte by byte: what both ends see, and how a socket ends.

pub mod bed;
mod bridge;
mod bridged;
mod conformance;
mod ends;
mod events;
mod handshakes;
mod limits;
mod seats;

use crate::harness::Gateway;
use crate::harness::gateway::Builder;

/// One route to one upstream, with these limits.
fn manifest(url: &str, limits: &str) -> String {
    format!(
        "upstreams: {{ echo: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         cors: {{ app: {{ origins: [\"https://app.example\"] }} }}\n\
         chains: {{ all: [access_log, recovery, request_id, metrics] }}\n\
         routes:\n  \
         - {{ route: GET /ws, chain: all, public: true, upstream: echo, path: /up, protocol: websocket, \
         websocket: {{ {limits} }} }}\n  \
         - {{ route: GET /a, chain: all, public: true, respond: {{ text: ok }} }}\n"
    )
}

fn gateway(url: &str, limits: &str) -> Builder {
    Gateway::with(&manifest(url, limits))
}
