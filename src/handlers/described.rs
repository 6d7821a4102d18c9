//! What the native operations say of themselves, without the operations: for whoever only describes a manifest.

use super::Groups;
use http::Method;
use poem::endpoint::BoxEndpoint;
use poem_openapi::registry::{MetaApi, Registry};
use poem_openapi::{OpenApi, OpenApiService};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Every group's description; nothing in it can be called.
struct Descriptions;

impl OpenApi for Descriptions {
    fn meta() -> Vec<MetaApi> {
        Groups::meta()
    }

    fn register(registry: &mut Registry) {
        Groups::register(registry);
    }

    fn add_routes(self, _: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {}
}

/// What all operations say of themselves: an OpenAPI 3.0 document with their private paths.
pub fn described() -> &'static Value {
    static ALL: OnceLock<Value> = OnceLock::new();
    ALL.get_or_init(|| {
        let service = OpenApiService::new(Descriptions, "voicegate", env!("CARGO_PKG_VERSION"));
        // Its own writer's text; were it none of JSON, the operations would be there and undescribed.
        serde_json::from_str(&service.spec()).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_described() {
        let said = described()["paths"].to_string();
        for operation in super::super::operations() {
            assert!(said.contains(&format!("\"operationId\":\"{}\"", operation.name)), "{}", operation.name);
        }
    }
}
