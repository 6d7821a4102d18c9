//! Native operations: what the gateway answers itself.
//!
//! Each group is a poem-openapi `#[OpenApi]` impl in a file of its own. To add an operation: one method, whose
//! `operation_id` is the handler's name in the manifest (`auth.register`). Its path here is private: the manifest
//! says where it is served, and the request's URI is rewritten to it. All groups run in **one** `OpenApiService`,
//! because poem-openapi's query parameters need what only that inserts.

mod auth;
mod gateway;
mod input;
mod planned;

pub use auth::AuthApi;
pub use gateway::GatewayApi;
pub(crate) use input::read as read_json;
pub use planned::PLANNED;

use crate::exchange::Exchange;
use crate::state::Shared;
use http::Method;
use poem::endpoint::BoxEndpoint;
use poem::{Endpoint, IntoEndpoint, Request, Response};
use poem_openapi::{OpenApi, OpenApiService};
use std::sync::{Arc, OnceLock};

/// Every group. The type of the one service.
type Groups = (GatewayApi, AuthApi);

/// One native operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Name in the manifest: its operation id.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Method it is written for.
    pub method: Method,
    /// Path it is written for, with `:name` parameters.
    pub path: String,
}

/// Every native operation, by name.
pub fn operations() -> &'static [Operation] {
    static ALL: OnceLock<Vec<Operation>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all: Vec<Operation> = Groups::meta()
            .into_iter()
            .flat_map(|group| group.paths)
            .flat_map(|path| path.operations.into_iter().map(move |operation| (path.path.clone(), operation)))
            .filter_map(|(path, operation)| {
                Some(Operation {
                    name: operation.operation_id?,
                    summary: operation.summary.unwrap_or_default(),
                    method: operation.method,
                    path: path.replace('{', ":").replace('}', ""),
                })
            })
            .collect();
        all.sort_by_key(|operation| operation.name);
        all
    })
}

/// The operation of a name.
pub fn find(name: &str) -> Option<&'static Operation> {
    operations().iter().find(|operation| operation.name == name)
}

/// All groups, ready to run.
pub struct Handlers {
    service: Arc<BoxEndpoint<'static, Response>>,
}

impl Handlers {
    /// Builds the one service.
    pub fn new(shared: &Arc<Shared>) -> Self {
        let groups: Groups = (GatewayApi::new(shared.clone()), AuthApi::new(shared.accounts.clone()));
        let service = OpenApiService::new(groups, "voicegate", env!("CARGO_PKG_VERSION"));
        Handlers { service: Arc::new(service.into_endpoint()) }
    }

    /// An operation as the target of a route; its errors are not finished yet.
    pub fn endpoint(&self, operation: &'static Operation) -> impl Endpoint<Output = Response> + use<> {
        Native { service: self.service.clone(), operation }
    }
}

struct Native {
    service: Arc<BoxEndpoint<'static, Response>>,
    operation: &'static Operation,
}

impl Endpoint for Native {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let path = private_path(&self.operation.path, Exchange::of(&request));
        let path_and_query = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        *request.uri_mut() = path_and_query.parse().map_err(|_| {
            poem::Error::from_string("the path cannot be rewritten", http::StatusCode::BAD_REQUEST)
        })?;
        request.set_method(self.operation.method.clone());
        self.service.call(request).await
    }
}

/// The path an operation is written for, with the parameters that the manifest's route took.
fn private_path(template: &str, exchange: &Exchange) -> String {
    if !template.contains(':') {
        return template.to_owned();
    }
    let parts = template.split('/').map(|part| match part.strip_prefix(':') {
        Some(name) => exchange.param(name).unwrap_or_default(),
        None => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_named_by_group_and_verb_and_nowhere_twice() {
        let names: Vec<_> = operations().iter().map(|operation| operation.name).collect();
        assert!(names.contains(&"gateway.health"), "{names:?}");
        for name in &names {
            assert_eq!(name.split('.').count(), 2, "{name}");
            assert!(PLANNED.iter().all(|(planned, _)| planned != name), "{name} is built and planned");
        }
    }
}
