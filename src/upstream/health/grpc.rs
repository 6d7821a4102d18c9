//! The gRPC health protocol (`grpc.health.v1`, gRFC A17 names it): one call of `Check` over a connection of its own.

use super::probe::ASKER;
use crate::grpc::frame::{self, Decoder};
use crate::grpc::status::ended;
use crate::upstream::body::Causes;
use crate::upstream::client::dial;
use crate::upstream::spec::{ServerSpec, UpstreamSpec};
use ::h2::client::SendRequest;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, StatusCode, Version};
use prost::Message;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// Largest answer.
const MOST: u64 = 4 << 10;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Whether the server says that it serves; an error says what it says instead.
pub(super) async fn ask(
    spec: &UpstreamSpec,
    server: &ServerSpec,
    service: &str,
    patience: Duration,
) -> Result<(), String> {
    let connected = async {
        let socket = dial(server, Instant::now() + patience).await?;
        socket.set_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    };
    let socket = timeout(patience, connected).await.map_err(|_| "no connection in time".to_owned())?;
    let socket = socket.map_err(|error| Causes(&error).to_string())?;
    match (&server.tls, spec.tls()) {
        (Some(name), Some(config)) => {
            let stream = TlsConnector::from(config.clone()).connect(name.clone(), socket).await;
            call(stream.map_err(|error| Causes(&error).to_string())?, server, service).await
        }
        _ => call(socket, server, service).await,
    }
}

async fn call<T>(io: T, server: &ServerSpec, service: &str) -> Result<(), String>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let shaken = ::h2::client::handshake(io).await;
    let (sender, connection) = shaken.map_err(|error| Causes(&error).to_string())?;
    tokio::select! {
        said = check(sender, server, service) => said,
        ended = connection => Err(match ended {
            Ok(()) => "the connection ended before an answer".to_owned(),
            Err(error) => Causes(&error).to_string(),
        }),
    }
}

async fn check(sender: SendRequest<Bytes>, server: &ServerSpec, service: &str) -> Result<(), String> {
    let broke = |error: ::h2::Error| Causes(&error).to_string();
    let authority = String::from_utf8_lossy(server.authority.as_bytes()).into_owned();
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("{}://{authority}/grpc.health.v1.Health/Check", server.scheme()))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(TE, HeaderValue::from_static("trailers"))
        .header(USER_AGENT, ASKER)
        .body(())
        .map_err(|error| error.to_string())?;
    let mut sender = sender.ready().await.map_err(broke)?;
    let (answer, mut question) = sender.send_request(request, false).map_err(broke)?;
    question.send_data(frame::encode(&Question { service: service.to_owned() }), true).map_err(broke)?;
    let answer = answer.await.map_err(broke)?;
    if answer.status() != StatusCode::OK {
        return Err(format!("status {}", answer.status().as_u16()));
    }
    let refused = |end: Option<Result<(), crate::grpc::status::Failure>>| match end {
        Some(Err(failure)) => Err(format!("gRPC status {:?}: {}", failure.code(), failure.message())),
        _ => Ok(()),
    };
    refused(ended(answer.headers()))?;
    let mut body = answer.into_body();
    let mut decoder = Decoder::new(MOST);
    let mut reply = None;
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(broke)?;
        // Fails only for more than was received.
        let _ = body.flow_control().release_capacity(piece.len());
        decoder.push(piece);
        if let Some(message) = decoder.pull().map_err(|error| error.to_string())? {
            reply = Some(Reply::decode(message).map_err(|error| error.to_string())?);
        }
    }
    if let Some(trailers) = body.trailers().await.map_err(broke)? {
        refused(ended(&trailers))?;
    }
    match reply.map(|reply| reply.status()) {
        Some(ServingStatus::Serving) => Ok(()),
        Some(other) => Err(format!("it says {other:?}")),
        None => Err("it answered nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::spec::tests::spec;
    use crate::upstream::testing::Scripted;
    use http::{HeaderMap, Response};

    /// A server that answers every call with this message and gRPC status, if it is asked for `app.Service`.
    async fn answering(status: Option<ServingStatus>, code: &'static str) -> Scripted {
        Scripted::start(move |wire| async move {
            let broke = std::io::Error::other;
            let mut connection = ::h2::server::handshake(wire.into_socket()).await.map_err(broke)?;
            while let Some(stream) = connection.accept().await {
                let (request, mut answer) = stream.map_err(broke)?;
                tokio::spawn(async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let mut asked = Vec::new();
                    let mut body = request.into_body();
                    while let Some(Ok(piece)) = body.data().await {
                        asked.extend_from_slice(&piece);
                    }
                    assert_eq!(&asked[5..], b"\x0a\x0bapp.Service");
                    let head = Response::builder().header(CONTENT_TYPE, "application/grpc").body(()).unwrap();
                    let mut stream = answer.send_response(head, false).unwrap();
                    if let Some(status) = status {
                        let reply = frame::encode(&Reply { status: status as i32 });
                        stream.send_data(reply, false).unwrap();
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(code));
                    stream.send_trailers(trailers).unwrap();
                });
            }
            Ok(())
        })
        .await
    }

    async fn asked(server: &Scripted) -> Result<(), String> {
        let yaml = format!("{{ targets: [{{ url: \"{}\" }}], protocol: grpc }}", server.url());
        let spec = spec(&yaml);
        ask(&spec, &spec.servers()[0], "app.Service", Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn a_server_is_well_if_it_says_that_it_serves() {
        assert_eq!(asked(&answering(Some(ServingStatus::Serving), "0").await).await, Ok(()));
        let sick = asked(&answering(Some(ServingStatus::NotServing), "0").await).await;
        assert_eq!(sick, Err("it says NotServing".to_owned()));
        let unknown = asked(&answering(None, "12").await).await.unwrap_err();
        assert!(unknown.contains("Unimplemented"), "{unknown}");
        assert_eq!(asked(&answering(None, "0").await).await, Err("it answered nothing".to_owned()));
    }

    #[tokio::test]
    async fn what_does_not_speak_http2_is_not_well() {
        let server = Scripted::start(|mut wire| async move {
            wire.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await
        })
        .await;
        assert!(asked(&server).await.is_err());
    }
}
