//! `upload`: form uploads (`multipart/form-data`) pass while their parts are what the route takes.
//!
//! Only heads of parts are looked at, as they come by; the body streams on at once and nothing of it is kept. A body that
//! is no form is 415, a part of another type 415 too, a part that the route does not know, too many parts or a form
//! that two readers could understand differently 400 (see [`multipart`](crate::multipart)): told in the common form
//! as long as no response has begun. The upstream sees a request that breaks off before the part's first byte.
//! How large an upload may be is `body_limit`'s business. Off by leaving it out.

use super::media::MediaTypes;
use super::{
    Body as Form, BuildCx, Fit, Hook, Layer, Misfit, Probe, Stage, StageCx, StageDecl, Stop, Verdict,
};
use crate::diag::{Code, Diagnostic};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::{List, Spanned, Table};
use crate::multipart::{Event, Head, Malformed, Scanner};
use crate::openapi::OperationDoc;
use bytes::Bytes;
use http::Version;
use http::header::CONTENT_TYPE;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Parts of a form, where the manifest says nothing.
const MAX_PARTS: u32 = 16;
/// What a part is that does not say (RFC 7578, section 4.4).
const UNSAID: &str = "text/plain";

/// Takes form uploads whose parts are known.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Parts that may come by the field's name, each with the media types it may have (`audio/*`); an empty list lets any type pass. A part that does not say its type is `text/plain`.
    pub parts: Table<List<String>>,
    /// Parts at most, repeated ones counted (default 16).
    pub max_parts: Option<Spanned<u32>>,
}

impl StageDecl for Upload {
    const NAME: &'static str = "upload";
    const ABOUT: &'static str = "Takes form uploads whose parts are known, as they stream by";
    const BODY: Form = Form::Bare("parts");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        if self.parts.0.is_empty() {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, cx.span, "stage `upload` would refuse every part")
                    .help("name the parts that may come, such as `parts: { audio: [audio/*] }`"),
            );
        }
        let max_parts = self.max_parts.as_ref().map_or(MAX_PARTS, |most| most.value);
        if let (0, Some(most)) = (max_parts, &self.max_parts) {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, most.span, "no part could come").help("write at least 1"),
            );
        }
        let parts =
            self.parts.0.iter().map(|(name, types)| (name.text.clone(), MediaTypes::check(types, cx.out)));
        Some(Arc::new(Checked(Arc::new(Rules { parts: parts.collect(), max_parts }))))
    }
}

struct Rules {
    parts: Box<[(String, MediaTypes)]>,
    max_parts: u32,
}

impl Rules {
    /// Whether the part may come, after so many.
    fn check(&self, head: Head<'_>, before: u32) -> Result<(), GatewayError> {
        if before >= self.max_parts {
            return Err(GatewayError::new(
                Kind::BadRequest,
                format!("A form has {} parts at most here", self.max_parts),
            ));
        }
        let Some((name, types)) = self.parts.iter().find(|(name, _)| name == head.name) else {
            let known: Vec<_> = self.parts.iter().map(|(name, _)| name.as_str()).collect();
            let detail = format!("A part has a name that is not known here; known: {}", known.join(", "));
            return Err(GatewayError::new(Kind::BadRequest, detail));
        };
        match types.is_empty() || types.pass(head.content_type.unwrap_or(UNSAID)) {
            true => Ok(()),
            false => {
                let detail = format!("What may come as part `{name}`: {}", types.words());
                Err(GatewayError::new(Kind::UnsupportedMediaType, detail))
            }
        }
    }
}

struct Checked(Arc<Rules>);

impl Stage for Checked {
    fn name(&self) -> &'static str {
        Upload::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Checked(self.0.clone())))
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        matches!(fit.route.method.as_str(), "GET" | "HEAD").then_some(Misfit {
            code: Code::MISPLACED,
            message: "stage `upload` waits for a body that this method does not have",
            help: "use it on routes with POST, PUT or PATCH",
        })
    }

    fn document(&self, op: &mut OperationDoc) {
        op.refuses(&[Kind::UnsupportedMediaType], "a form, or a part of a type that may not come");
        if op.described {
            // Whatever else the service would take: a part of another name does not come as far.
            let form =
                op.body_mut().and_then(|body| body.pointer_mut("/content/multipart~1form-data/schema"));
            if let Some(serde_json::Value::Object(schema)) = form
                && schema.contains_key("properties")
            {
                schema.insert("additionalProperties".to_owned(), false.into());
            }
            return;
        }
        let (mut properties, mut encoding) = (serde_json::Map::new(), serde_json::Map::new());
        for (name, types) in &self.0.parts {
            properties.insert(name.clone(), serde_json::json!({ "type": "string" }));
            if !types.is_empty() {
                encoding.insert(name.clone(), serde_json::json!({ "contentType": types.words() }));
            }
        }
        op.body(serde_json::json!({ "required": true, "content": { "multipart/form-data": {
            "schema": { "type": "object", "properties": properties, "additionalProperties": false },
            "encoding": encoding,
        } } }));
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        let names: Vec<_> = self.0.parts.iter().map(|(name, _)| name.as_str()).collect();
        match (probe.headers.contains_key(CONTENT_TYPE), Scanner::of(probe.headers)) {
            (true, Err(error)) => Verdict::Refuses(415, error.to_string()),
            _ => Verdict::Passes(format!("multipart/form-data with the parts {}", names.join(", "))),
        }
    }
}

impl Hook for Checked {
    fn request(&self, _: &Arc<Exchange>, request: &mut Request) -> Result<(), Stop> {
        let scanner = Scanner::of(request.headers()).map_err(|error| GatewayError {
            // The body is not read, so on HTTP/1 nothing can follow it.
            close: request.version() <= Version::HTTP_11,
            ..GatewayError::new(Kind::UnsupportedMediaType, sentence(error))
        })?;
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        request.set_body(BoxBody::new(Watched {
            body,
            scanner,
            parts: 0,
            rules: self.0.clone(),
            over: false,
        }));
        Ok(())
    }
}

fn sentence(Malformed(text): Malformed) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Why a body is not read on.
struct Broken(GatewayError);

impl From<Malformed> for Broken {
    fn from(error: Malformed) -> Self {
        Broken(GatewayError::new(Kind::BadRequest, sentence(error)))
    }
}

impl From<Broken> for io::Error {
    fn from(Broken(error): Broken) -> Self {
        // What is left of the body is not read.
        io::Error::other(GatewayError { close: true, ..error })
    }
}

/// A body whose parts are looked at on the way.
struct Watched {
    body: BoxBody<Bytes, io::Error>,
    scanner: Scanner,
    parts: u32,
    rules: Arc<Rules>,
    /// Whether an error was told: nothing comes after it.
    over: bool,
}

impl Watched {
    fn look(&mut self, data: &[u8]) -> Result<(), Broken> {
        let Watched { scanner, parts, rules, .. } = self;
        scanner.feed(data, &mut |event| {
            if let Event::Part(head) = event {
                rules.check(head, *parts).map_err(Broken)?;
                *parts += 1;
            }
            Ok(())
        })
    }

    fn broken(&mut self, error: Broken) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.body = BoxBody::default();
        self.over = true;
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        let looked = match &poll {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                Some(data) => self.look(data).and_then(|()| match self.body.is_end_stream() {
                    // Who knows the length asks for no more.
                    true => Ok(self.scanner.end()?),
                    false => Ok(()),
                }),
                None => Ok(()),
            },
            Poll::Ready(None) => self.scanner.end().map_err(Broken::from),
            _ => Ok(()),
        };
        match looked {
            Ok(()) => poll,
            Err(error) => self.broken(error),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.scanner.is_whole() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{around, check, code, fed, request, send, target};
    use super::super::{Next, sealed};
    use super::*;
    use crate::exchange::RouteInfo;
    use crate::manifest::model::Protocol;
    use http::Method;
    use http_body_util::BodyExt;
    use poem::Response;

    const STAGE: &str = "upload: { parts: { audio: [audio/*], note: [] }, max_parts: 2 }";
    const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=b");

    fn part(head: &str) -> String {
        format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\nx\r\n")
    }

    /// Reads the body whole and answers its length.
    fn reading() -> Next {
        around(
            STAGE,
            target(|request| async move {
                let body = request.into_body().into_bytes().await?;
                Ok(Response::builder().body(body.len().to_string()))
            }),
        )
    }

    async fn sent(body: String) -> Response {
        let mut asked = request(Method::POST, &[FORM]);
        asked.set_body(body);
        send(&reading(), asked).await
    }

    #[tokio::test]
    async fn parts_pass_by_name_and_type() {
        let audio = "name=audio; filename=\"a.wav\"\r\nContent-Type: audio/wav";
        for parts in [vec![audio], vec![audio, "name=note"], vec!["name=note\r\nContent-Type: a/b"], vec![]] {
            let body = parts.into_iter().map(part).collect::<String>() + "--b--\r\n";
            let length = body.len().to_string();
            let response = sent(body).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.into_body().into_string().await.unwrap(), length, "unchanged");
        }
        for (parts, status, wanted) in [
            (vec!["name=audio\r\nContent-Type: text/html"], 415, "unsupported_media_type"),
            (vec!["name=audio"], 415, "unsupported_media_type"),
            (vec!["name=video"], 400, "bad_request"),
            (vec![audio, audio, audio], 400, "bad_request"),
        ] {
            let response = sent(parts.iter().map(|head| part(head)).collect::<String>() + "--b--").await;
            assert_eq!(response.header("connection"), Some("close"));
            assert_eq!(
                (response.status().as_u16(), code(response).await),
                (status, wanted.to_owned()),
                "{parts:?}"
            );
        }
        assert_eq!(sent(part(audio)).await.status(), 400, "it has no end");
        assert_eq!(sent(String::new()).await.status(), 400, "it has nothing");
    }

    #[tokio::test]
    async fn what_is_no_form_is_refused_before_a_byte() {
        let next = around(STAGE, target(|_| async { panic!("it is not called") }));
        for headers in [&[][..], &[("content-type", "audio/wav")], &[("content-type", "multipart/form-data")]]
        {
            let mut asked = request(Method::POST, headers);
            let (feed, body) = fed();
            asked.set_body(body);
            let response = send(&next, asked).await;
            assert_eq!((response.status().as_u16(), feed.is_closed()), (415, true));
            assert_eq!(code(response).await, "unsupported_media_type");
        }
    }

    #[tokio::test]
    async fn an_upload_streams_and_breaks_off_before_a_part_that_may_not_come() {
        // The target echoes what comes, piece by piece, as events.
        let echo = sealed(poem::endpoint::make(|request: Request| async move {
            let response = Response::builder().content_type("text/event-stream");
            Ok::<_, poem::Error>(response.body(request.into_body()))
        }));
        let mut asked = request(Method::POST, &[FORM]);
        let (feed, body) = fed();
        asked.set_body(body);
        let mut body: BoxBody<Bytes, io::Error> = send(&around(STAGE, echo), asked).await.into_body().into();
        for piece in
            ["--b\r\nContent-Disp", "osition: form-data; name=note\r\n\r\n", "data: 1\n\n", "data: 2\n\n"]
        {
            feed.send(Ok(piece.into())).unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece, "at once");
        }
        feed.send(Ok("\r\n--b\r\nContent-Disposition: form-data; name=other\r\n\r\nsecret".into())).unwrap();
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(GatewayError::from_body_error(&error).unwrap().kind, Kind::BadRequest);
        assert!(body.frame().await.is_none() && feed.is_closed());
    }

    #[test]
    fn faults_are_told() {
        let fault = |stage: &str| check(stage, "").faults.join("\n");
        assert!(fault("upload: { parts: {} }").contains("would refuse every part"));
        assert!(fault("upload: { parts: { a: [audio] } }").contains("this is not a media type"));
        assert!(fault("upload: { parts: { a: [] }, max_parts: 0 }").contains("no part could come"));
        assert!(fault("upload: {}").contains("VG012"));
        let stage = check(STAGE, "").sound();
        let misfit = |method: &str| {
            let route = RouteInfo { method: method.into(), ..RouteInfo::unmatched() };
            let fit = Fit { route: &route, described: None, streams: false, protocol: Protocol::Http };
            stage.misfit(&fit).map(|misfit| misfit.code)
        };
        assert_eq!((misfit("GET"), misfit("POST")), (Some(Code::MISPLACED), None));
    }
}
