//! Copies of answers: a bounded store of them in memory, for whoever gives one out again (`cache`, `fallback`).
//!
//! Whole answers only, under a [`Key`] that says for which route and for whom they are. An answer with `Vary` is kept
//! once for each set of values that its names had in the requests (RFC 9111, section 4.1). Bounded by bytes and by number;
//! what is asked for least goes first. A lookup takes a read lock on one part of the table for the length of one
//! look into it. Nothing here knows HTTP's rules of what may be kept: that is decided by whoever puts an answer in.

mod copy;
mod key;
mod store;
#[cfg(test)]
mod tests;

pub use copy::{Copy, age_value};
pub use key::{Key, KeyMaker};
pub use store::{Copies, Epoch, Figures, Found, Limits, Purge};
