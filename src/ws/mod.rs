//! WebSockets (RFC 6455): what both ends of the gateway need to know of them.

mod offer;

pub use offer::{Offer, SUBPROTOCOL};
