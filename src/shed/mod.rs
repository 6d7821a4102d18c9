//! Shedding: saying no at once instead of queueing, so that what is under way finishes.
//!
//! Three things may say no. A [`Gate`] bounds the requests under way on a route or to an upstream, by a fixed number or
//! by one that `gradient` finds from how long answers take. The process's [`Pressure`] bounds what is under way
//! altogether and watches its memory; there the more important goes on longer: health always, then by the priority of
//! the route, and on one priority short requests before new streams. Nothing that runs is ever ended by these.
//!
//! Whoever is shed gets 503 `overloaded` with `Retry-After`. Nobody waits here.

mod declared;
mod gate;
mod gradient;
pub mod memory;
mod pressure;

pub use gate::{Caps, Gate, Pass, Reason};
pub use gradient::GradientSpec;
pub use pressure::{Level, Pressure, Priority, Rank};
