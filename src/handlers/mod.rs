//! Native operations: what the gateway answers itself.
//!
//! Each group is a poem-openapi `#[OpenApi]` impl in a file of its own. To add an operation: one method, whose
//! `operation_id` is the handler's name in the manifest (`auth.register`). Its path here is private: the manifest
//! says where it is served, and the request's URI is rewritten to it. All groups run in **one** `OpenApiService`,
//! because poem-openapi's query parameters need what only that inserts.

mod auth;
mod chat;
mod described;
pub mod docs;
mod documents;
mod examples;
mod gateway;
mod input;
mod narrowed;
mod sessions;

pub use auth::AuthApi;
pub use chat::ChatApi;
pub use described::{Described, described, refusals};
pub use documents::DocumentsApi;
pub use gateway::GatewayApi;
pub(crate) use input::read as read_json;
pub use narrowed::schemas;
pub use sessions::SessionsApi;

use crate::exchange::Exchange;
use crate::manifest::model::OnDisconnect;
use crate::sse::StreamTimes;
use crate::state::Shared;
use crate::telemetry::StreamMetrics;
use crate::upstream::Upstream;
use http::Method;
use poem::endpoint::BoxEndpoint;
use poem::{Endpoint, IntoEndpoint, Request, Response};
use poem_openapi::{OpenApi, OpenApiService};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Every group. The type of the one service.
type Groups = (GatewayApi, AuthApi, SessionsApi, ChatApi, DocumentsApi, docs::DocsApi);

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
    /// What it does with a route's upstream.
    pub uses: Uses,
}

/// What an operation does with a route's `upstream`, `path` and `stream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uses {
    /// Nothing: a route that names one is wrong.
    Nothing,
    /// It may call it.
    Call,
    /// It reads an event stream from it, and answers with one.
    Stream,
}

/// Operations that work with an upstream.
const WITH_UPSTREAM: &[(&str, Uses)] = &[("chat.stream", Uses::Stream), ("chat.cancel", Uses::Call)];

/// Every native operation, by name.
pub fn operations() -> &'static [Operation] {
    static ALL: OnceLock<Vec<Operation>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all: Vec<Operation> = Groups::meta()
            .into_iter()
            .flat_map(|group| group.paths)
            .flat_map(|path| path.operations.into_iter().map(move |operation| (path.path.clone(), operation)))
            .filter_map(|(path, operation)| {
                let name = operation.operation_id?;
                Some(Operation {
                    name,
                    summary: operation.summary.unwrap_or_default(),
                    method: operation.method,
                    path: path.replace('{', ":").replace('}', ""),
                    uses: WITH_UPSTREAM
                        .iter()
                        .find(|(known, _)| *known == name)
                        .map_or(Uses::Nothing, |(_, uses)| *uses),
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
        let Shared { store, accounts, settings, .. } = &**shared;
        let clock = Arc::new(SystemTime::now);
        let groups: Groups = (
            GatewayApi::new(shared.clone()),
            AuthApi::new(accounts.clone(), shared.tokens.clone()),
            SessionsApi::new(store.clone(), accounts.clone(), &settings.conversations, clock),
            ChatApi::new(shared.clone()),
            DocumentsApi::new(shared.clone()),
            docs::DocsApi::new(shared.clone()),
        );
        let service = OpenApiService::new(groups, "voicegate", env!("CARGO_PKG_VERSION"));
        Handlers { service: Arc::new(service.into_endpoint()) }
    }

    /// An operation as the target of a route, with what is behind it; its errors are not finished yet.
    pub fn endpoint(
        &self,
        operation: &'static Operation,
        behind: Option<Behind>,
    ) -> impl Endpoint<Output = Response> + use<> {
        Native { service: self.service.clone(), operation, behind: behind.map(Arc::new) }
    }
}

/// What is behind a native operation, on the route that it serves.
pub struct Behind {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// Path at the upstream; without, the request's own.
    pub path: Option<Arc<str>>,
    /// Limits of the stream, where the operation answers with one.
    pub stream: Option<ChatLimits>,
    /// Counts the route's streams.
    pub metrics: Arc<StreamMetrics>,
    /// What is asked where the upstream cannot answer.
    pub other: Option<Arc<Upstream>>,
}

/// Limits of a chat stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatLimits {
    /// Deadlines and heartbeat.
    pub times: StreamTimes,
    /// What becomes of the answer when the caller leaves.
    pub on_disconnect: OnDisconnect,
    /// How long a stream that is over can be read again.
    pub resume_for: Duration,
    /// Largest stream, in bytes of its events.
    pub max_size: u64,
}

struct Native {
    service: Arc<BoxEndpoint<'static, Response>>,
    operation: &'static Operation,
    behind: Option<Arc<Behind>>,
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
        if let Some(behind) = &self.behind {
            request.set_data(behind.clone());
        }
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
        }
    }
}
