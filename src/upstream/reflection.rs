//! `reflection: true`: the servers are asked for their descriptors (gRPC server reflection, v1 and before it v1alpha).
//!
//! Asked in the background, so that neither the start nor a check waits for a service: at once, after a failure again and
//! again, and once a minute for changes. What was said last stays while nobody answers. Bounded: a server cannot make
//! the gateway keep more than [`MAX_FILES`] files or [`MAX_BYTES`].

use super::{SendOptions, Upstream};
use crate::error::Lang;
use crate::exchange::{Arrival, Exchange};
use crate::grpc::frame::{self, Decoder};
use crate::grpc::status::ended;
use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_types::FileDescriptorProto;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// For everything that is asked in one go.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failure, doubled with each up to [`REFRESH`].
const AGAIN: Duration = Duration::from_secs(1);
/// Until descriptors that were had are asked for once more.
const REFRESH: Duration = Duration::from_secs(60);
/// Files that descriptors may consist of.
const MAX_FILES: usize = 1000;
/// Size of all of them, encoded.
const MAX_BYTES: usize = 16 << 20;

/// The newest version first; both have the same messages.
const VERSIONS: [&str; 2] = ["grpc.reflection.v1", "grpc.reflection.v1alpha"];

/// Asks for as long as the upstream lives. Must be called within a Tokio runtime.
pub(super) async fn follow(upstream: Weak<Upstream>) {
    let mut wait = AGAIN;
    let mut trouble = None;
    while let Some(upstream) = upstream.upgrade() {
        let name = upstream.spec.name().clone();
        let asked = timeout(PATIENCE, ask(&upstream)).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(pool) => {
                let known = upstream.reflected();
                if known.as_ref().is_none_or(|known| known.encode_to_vec() != pool.encode_to_vec()) {
                    tracing::info!(
                        upstream = &*name,
                        services = pool.services().len(),
                        "descriptors have come"
                    );
                    upstream.reflected.store(Some(Arc::new(pool)));
                }
                wait = REFRESH;
                trouble = None;
            }
            Err(why) => {
                // Each new reason once.
                if trouble.as_ref() != Some(&why) {
                    tracing::warn!(upstream = &*name, error = why, "descriptors cannot be had by reflection");
                }
                wait = match trouble.replace(why) {
                    None => AGAIN,
                    Some(_) => (wait * 2).min(REFRESH),
                };
            }
        }
        drop(upstream);
        sleep(wait).await;
    }
}

/// Everything that a server says of its services.
async fn ask(upstream: &Arc<Upstream>) -> Result<DescriptorPool, String> {
    let mut why = String::new();
    for version in VERSIONS {
        match ask_version(upstream, version).await {
            Ok(pool) => return Ok(pool),
            // What the older one says is only of interest where the newer is not there.
            Err(error) if why.is_empty() || !error.contains("Unimplemented") => why = error,
            Err(_) => {}
        }
    }
    Err(why)
}

async fn ask_version(upstream: &Arc<Upstream>, version: &str) -> Result<DescriptorPool, String> {
    let listed = call(upstream, version, vec![MessageRequest::ListServices(String::new())]).await?;
    let services = listed.into_iter().flat_map(|answer| match answer {
        MessageResponse::ListServicesResponse(list) => list.service,
        _ => Vec::new(),
    });
    let mut wanted: Vec<MessageRequest> =
        services.map(|service| MessageRequest::FileContainingSymbol(service.name)).collect();
    let mut files: BTreeMap<String, Bytes> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    while !wanted.is_empty() {
        for answer in call(upstream, version, wanted).await? {
            let found = match answer {
                MessageResponse::FileDescriptorResponse(found) => found.file_descriptor_proto,
                MessageResponse::ErrorResponse(error) => {
                    return Err(format!("it says: {}", error.error_message));
                }
                _ => Vec::new(),
            };
            for file in found.into_iter().map(Bytes::from) {
                let read = FileDescriptorProto::decode(file.clone()).map_err(|error| error.to_string())?;
                missing.extend(read.dependency.iter().cloned());
                files.insert(read.name().to_owned(), file);
            }
        }
        if files.len() > MAX_FILES || files.values().map(Bytes::len).sum::<usize>() > MAX_BYTES {
            return Err(format!(
                "its descriptors are more than {MAX_FILES} files or {} MiB",
                MAX_BYTES >> 20
            ));
        }
        let asked = missing.iter().filter(|name| !files.contains_key(*name)).cloned().collect::<Vec<_>>();
        missing.clear();
        wanted = asked.into_iter().map(MessageRequest::FileByFilename).collect();
    }
    // As bytes: typed, the files would lose their annotations.
    let set = FileSet { files: files.into_values().collect() };
    DescriptorPool::decode(set.encode_to_vec().as_slice()).map_err(|error| error.to_string())
}

/// `google.protobuf.FileDescriptorSet` with its files unread.
#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    files: Vec<Bytes>,
}

/// One call of `ServerReflectionInfo`: all questions at once, then all answers.
async fn call(
    upstream: &Arc<Upstream>,
    version: &str,
    questions: Vec<MessageRequest>,
) -> Result<Vec<MessageResponse>, String> {
    let count = questions.len();
    let mut body = Vec::new();
    for question in questions {
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        body.extend_from_slice(&frame::encode(&question));
    }
    let nobody = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let exchange = Exchange::begin(Arrival {
        peer: nobody,
        client_ip: nobody.ip(),
        secure: false,
        method: Method::POST,
        path: format!("/{version}.ServerReflection/ServerReflectionInfo"),
        lang: Lang::En,
    });
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = exchange.path.parse().map_err(|_| "the path is malformed".to_owned())?;
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let options =
        SendOptions { stream: true, until: Some(Instant::now() + PATIENCE), ..SendOptions::default() };
    let response = upstream.send(&exchange, request, &options).await.map_err(|error| error.to_string())?;
    let refused = |end: Option<Result<(), crate::grpc::status::Failure>>| match end {
        Some(Err(failure)) => Err(format!("it answers {:?}: {}", failure.code(), failure.message())),
        _ => Ok(()),
    };
    refused(ended(response.headers()))?;
    let mut body = response.into_body();
    let mut decoder = Decoder::new(MAX_BYTES as u64);
    let mut answers = Vec::new();
    while answers.len() < count {
        let Some(piece) = body.frame().await else { break };
        match piece.map_err(|error| error.to_string())?.into_data() {
            Ok(data) => decoder.push(data),
            Err(other) => refused(other.trailers_ref().and_then(ended))?,
        }
        while let Some(answer) = decoder.pull().map_err(|error| error.to_string())? {
            let answer = ServerReflectionResponse::decode(answer).map_err(|error| error.to_string())?;
            answers.extend(answer.message_response);
        }
    }
    match answers.len() < count {
        true => Err("it left questions unanswered".to_owned()),
        false => Ok(answers),
    }
}
