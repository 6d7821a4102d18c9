//! The stand-in gRPC services: documents, sessions and auth, for real but in memory, with server reflection beside them.
//!
//! They listen where the algorithm service does: a request whose content type is gRPC's is theirs. Callers say who they
//! are by `x-user-id` and `x-tenant-id` in the metadata, as the gateway does. What a test may ask of any call by
//! metadata: `x-demo-delay: 500` waits so many milliseconds first, `x-demo-status: 14` fails with that status,
//! `x-demo-plain: 200` answers with that status in JSON, as something that does not speak gRPC.

mod auth;
mod caller;
mod documents;
mod faults;
mod sessions;
#[cfg(test)]
mod tests;

use super::reply::{self, Cut, json_response};
use auth::AuthService;
use documents::DocumentsService;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use sessions::SessionsService;
use std::time::Duration;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic::{Code, Status};

/// Generated from `openapi/protos/`: messages, servers, and clients for tests.
pub mod proto {
    #![allow(missing_docs, clippy::all, clippy::unwrap_used, reason = "generated")]

    /// `voicehelper.documents.v1`.
    pub mod documents {
        include!(concat!(env!("OUT_DIR"), "/voicehelper.documents.v1.rs"));
    }

    /// `voicehelper.sessions.v1`.
    pub mod sessions {
        include!(concat!(env!("OUT_DIR"), "/voicehelper.sessions.v1.rs"));
    }

    /// `voicehelper.auth.v1`.
    pub mod auth {
        include!(concat!(env!("OUT_DIR"), "/voicehelper.auth.v1.rs"));
    }

    /// All of it as a `google.protobuf.FileDescriptorSet`, annotations included.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.binpb"));
}

use proto::auth::auth_server::AuthServer;
use proto::documents::documents_server::DocumentsServer;
use proto::sessions::sessions_server::SessionsServer;

/// The services, ready to answer.
#[derive(Debug, Clone)]
pub(super) struct Grpc {
    routes: Routes,
    documents: DocumentsService,
}

impl Grpc {
    /// Nothing is stored yet; `secret` signs access tokens.
    pub(super) fn new(secret: &[u8]) -> Self {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        };
        let built = "the build encoded these descriptors";
        let documents = DocumentsService::default();
        let routes = Routes::new(DocumentsServer::new(documents.clone()))
            .add_service(SessionsServer::new(SessionsService::default()))
            .add_service(AuthServer::new(AuthService::new(secret)))
            .add_service(reflection().build_v1().expect(built))
            .add_service(reflection().build_v1alpha().expect(built))
            .prepare();
        Self { routes, documents }
    }

    /// Calls of `Documents/Watch` under way.
    pub(super) fn watchers(&self) -> usize {
        self.documents.watchers()
    }

    /// Whether a request is theirs.
    pub(super) fn takes(headers: &HeaderMap) -> bool {
        let kind = headers.get(http::header::CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }

    /// Answers one call, within its `grpc-timeout`. Dropping the future is the caller's leaving.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<reply::Body> {
        let deadline = timeout(request.headers());
        let wait = number(request.headers(), "x-demo-delay").map(|ms| Duration::from_millis(u64::from(ms)));
        let fail = number(request.headers(), "x-demo-status");
        if let Some(status) = number(request.headers(), "x-demo-plain") {
            let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            return json_response(status.unwrap_or_default(), &"this is no gRPC");
        }
        let mut routes = self.routes.clone();
        let answered = async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            match fail {
                Some(code) => {
                    let code = Code::from_i32(i32::try_from(code).unwrap_or_default());
                    Status::new(code, "this status was asked for by metadata").into_http()
                }
                None => routes.call(request).await.unwrap_or_else(|never| match never {}),
            }
        };
        let response: Response<tonic::body::Body> = match deadline {
            None => answered.await,
            Some(deadline) => tokio::time::timeout(deadline, answered)
                .await
                .unwrap_or_else(|_| Status::deadline_exceeded("the deadline passed").into_http()),
        };
        response.map(|body| body.map_err(|_| Cut).boxed_unsync())
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u32> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}
