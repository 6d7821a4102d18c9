//! `voicegate schema`: the JSON Schema of manifests.

use super::{OK, print};
use crate::compile::schema::manifest_schema;

pub(super) fn run() -> u8 {
    print(&format!("{:#}\n", manifest_schema()));
    OK
}
