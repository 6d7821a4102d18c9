//! What the file says: from YAML on disk to typed structures that know their places.
//!
//! [`load()`] reads all files, [`documents`] are those that they refer to, [`node`] is the tree, [`env`](mod@env) replaces `${VAR}`, [`decode`](mod@decode)
//! makes typed structures and reports every fault, [`model`] is the contract. Nothing is resolved here: that an
//! upstream exists is the business of the checks.

pub mod decode;
pub mod documents;
pub mod env;
mod load;
pub mod model;
pub mod node;
mod places;

pub use load::{Loaded, Manifest, load};
pub use node::Node;
pub use places::{List, Spanned, Table};
