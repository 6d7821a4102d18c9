//! Public definitions that the gateway itself reads, generated from `openapi/protos/google/`.

#![allow(missing_docs, clippy::all, reason = "generated")]

/// `google.api`: how a method looks as HTTP and JSON.
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/google.api.rs"));
}

/// `google.rpc`: why a call failed.
pub mod rpc {
    include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
}
