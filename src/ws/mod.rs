//! WebSockets (RFC 6455): what both ends of the gateway need to know of them.

pub mod frame;
pub mod handshake;
mod limits;
mod offer;
mod pace;

pub use limits::SocketLimits;
pub use offer::{Offer, SUBPROTOCOL};
pub use pace::Pace;
