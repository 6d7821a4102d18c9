//! `content_type`: request bodies pass by their media type, or get 415 `unsupported_media_type`.
//!
//! Goes by the `Content-Type` alone and reads nothing of the body. A request without a body passes, whatever it says;
//! one with a body that does not say what it is does not. Off by leaving it out.

use super::media::MediaTypes;
use super::{Body, BuildCx, Hook, Layer, Probe, Stage, StageCx, StageDecl, Stop, Verdict};
use crate::diag::{Code, Diagnostic};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::List;
use crate::openapi::OperationDoc;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Version};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Refuses request bodies of other media types.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContentType {
    /// Media types that pass, such as `application/json` or `audio/*`; parameters do not count.
    pub allow: List<String>,
}

impl StageDecl for ContentType {
    const NAME: &'static str = "content_type";
    const ABOUT: &'static str = "Refuses request bodies of other media types with 415";
    const BODY: Body = Body::Bare("allow");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let types = MediaTypes::check(&self.allow, cx.out);
        if self.allow.0.is_empty() {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, cx.span, "stage `content_type` would refuse every body")
                    .help("name what may come, such as `content_type: [application/json]`"),
            );
            return None;
        }
        Some(Arc::new(Checked(Arc::new(types))))
    }
}

struct Checked(Arc<MediaTypes>);

impl Checked {
    /// The one type that is given, and passes.
    fn pass(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(CONTENT_TYPE).iter();
        let first = given.next().and_then(|value| value.to_str().ok());
        given.next().is_none() && first.is_some_and(|given| self.0.pass(given))
    }
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        ContentType::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Checked(self.0.clone())))
    }

    fn is_common(&self) -> bool {
        true
    }

    fn document(&self, op: &mut OperationDoc) {
        if op.has_body() {
            op.refuses(&[Kind::UnsupportedMediaType], &format!("reads {}", self.0.words()));
        }
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        match (probe.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes), self.pass(probe.headers)) {
            (None, _) => Verdict::Passes(format!("without a body, or with one that is {}", self.0.words())),
            (Some(_), true) => Verdict::Passes(String::new()),
            (Some(_), false) => Verdict::Refuses(415, format!("only {} may come", self.0.words())),
        }
    }
}

impl Hook for Checked {
    fn request(&self, _: &Arc<Exchange>, request: &mut Request) -> Result<(), Stop> {
        if self.pass(request.headers()) {
            return Ok(());
        }
        let body: BoxBody<_, _> = request.take_body().into();
        let is_empty = body.is_end_stream();
        request.set_body(body);
        match is_empty {
            true => Ok(()),
            false => Err(refusal(&self.0, request.version()).into()),
        }
    }
}

/// 415 that says what may come. The body is not read, so on HTTP/1 nothing can follow it.
pub(super) fn refusal(types: &MediaTypes, version: Version) -> GatewayError {
    let refusal =
        GatewayError::new(Kind::UnsupportedMediaType, format!("What may come here: {}", types.words()));
    GatewayError { close: version <= Version::HTTP_11, ..refusal }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, check, code, fed, request, send};
    use http::Method;
    use poem::Response;

    #[tokio::test]
    async fn bodies_pass_by_their_type() {
        let next = around("content_type: [application/json, audio/*]", answering(Response::default));
        let asked = async |headers: &[(&str, &str)], body: &str| {
            let mut request = request(Method::POST, headers);
            request.set_body(body.to_owned());
            send(&next, request).await
        };
        for good in ["application/json", "APPLICATION/JSON; charset=utf-8", "audio/wav"] {
            assert_eq!(asked(&[("content-type", good)], "x").await.status(), 200, "{good}");
        }
        for bad in [&[][..], &[("content-type", "text/plain")], &[("content-type", "")]] {
            let refused = asked(bad, "x").await;
            assert_eq!(
                (refused.status().as_u16(), refused.header("connection")),
                (415, Some("close")),
                "{bad:?}"
            );
            assert_eq!(code(refused).await, "unsupported_media_type");
            assert_eq!(asked(bad, "").await.status(), 200, "nothing comes: {bad:?}");
        }
        let twice = [("content-type", "audio/wav"), ("content-type", "text/html")];
        assert_eq!(asked(&twice, "x").await.status(), 415, "two types are none");
    }

    #[tokio::test]
    async fn nothing_of_the_body_is_read() {
        let next = around("content_type: [audio/*]", answering(Response::default));
        let mut asked = request(Method::POST, &[("content-type", "text/plain")]);
        let (_feed, body) = fed();
        asked.set_body(body);
        assert_eq!(send(&next, asked).await.status(), 415, "before anything has come");
    }

    #[test]
    fn faults_are_told() {
        assert!(check("content_type: []", "").faults[0].contains("would refuse every body"));
        let faults = check("content_type: [json, audio/*]", "").faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("VG011 this is not a media type"), "{faults:?}");
    }
}
