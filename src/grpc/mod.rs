//! gRPC towards services behind the gateway, beyond HTTP/2: descriptors, and JSON for those who do not speak it.

pub mod wire;
