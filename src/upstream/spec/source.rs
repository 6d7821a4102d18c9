//! Where an upstream's descriptors come from: one source, and only where it speaks gRPC.

use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::Manifest;
use crate::manifest::model::{Upstream, UpstreamProtocol};
use prost_reflect::DescriptorPool;
use std::hash::{DefaultHasher, Hash};

/// Faults of the keys about descriptors.
pub(super) fn check(decl: &Upstream, out: &mut Diagnostics) {
    let grpc = decl.protocol.as_ref().is_some_and(|protocol| protocol.value == UpstreamProtocol::Grpc);
    let sources = sources(decl);
    let json = decl.json.as_ref().map(|json| ("json", json.span));
    if !grpc {
        for (key, span) in sources.iter().chain(&json) {
            out.push(
                Diagnostic::error(
                    Code::MISPLACED,
                    *span,
                    format!("`{key}` is for upstreams with `protocol: grpc`"),
                )
                .help(format!("add `protocol: grpc`, or remove `{key}`")),
            );
        }
    }
    if let [(first, at), (second, span), ..] = sources[..] {
        out.push(
            Diagnostic::error(
                Code::DESCRIPTORS,
                span,
                format!("`{second}` beside `{first}`: which of them counts is not clear"),
            )
            .help("descriptors have one source: keep one of them")
            .note(at, format!("`{first}` stands here")),
        );
    }
    if let Some(max) = decl.json.as_ref().and_then(|json| json.max_message.as_ref())
        && !(1..=1 << 30).contains(&max.value.0)
    {
        out.push(Diagnostic::error(Code::BAD_VALUE, max.span, "messages are of 1 byte to 1GiB"));
    }
}

fn sources(decl: &Upstream) -> Vec<(&'static str, Span)> {
    let protos = decl.protos.as_ref().and_then(|files| files.0.first()).map(|file| file.span);
    let set = decl.descriptors.as_ref().map(|set| set.span);
    let reflection = decl.reflection.as_ref().filter(|reflection| reflection.value).map(|it| it.span);
    [("protos", protos), ("descriptors", set), ("reflection", reflection)]
        .into_iter()
        .filter_map(|(key, span)| Some((key, span?)))
        .collect()
}

/// What makes routes that use it other ones.
pub(super) fn hash(
    multiplexes: bool,
    name: &str,
    decl: &Upstream,
    manifest: &Manifest,
    state: &mut DefaultHasher,
) {
    (multiplexes, decl.reflection.as_ref().map(|reflection| reflection.value)).hash(state);
    manifest.descriptors.get(name).map(DescriptorPool::encode_to_vec).hash(state);
    if let Some(json) = &decl.json {
        (json.names.unwrap_or_default() as u8, json.defaults, json.max_message.as_ref().map(|max| max.0))
            .hash(state);
    }
}
