//! Operations that are part of the contract and not built yet: naming one is refused with what it waits for.

use crate::diag::milestone::DOCUMENTS;

/// Name, and the part of the work that brings it.
pub const PLANNED: &[(&str, &str)] = &[("gateway.docs", DOCUMENTS)];
