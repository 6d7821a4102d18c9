//! How much an upstream is given at a time.

use crate::diag::Diagnostics;
use crate::manifest::model;
use crate::shed::Caps;

/// Is it sound? Reports every fault.
pub(super) fn check(decl: &model::Upstream, out: &mut Diagnostics) -> Caps {
    Caps::check(decl.max_in_flight.as_ref(), decl.adaptive.as_ref(), out)
}
