//! `calls [ADDRESS]`: answers every gRPC call over HTTP/2 without TLS with one message of 500 bytes, and anything else with
//! the same bytes. One thread.

#![forbid(unsafe_code)]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use load::listen;
use tokio::net::TcpStream;

const SIZE: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = load::argument(1, "127.0.0.1:9102".parse().expect("an address"));
    let listener = listen(address)?;
    let mut message = vec![0; 5];
    message[1..5].copy_from_slice(&(SIZE as u32).to_be_bytes());
    message.resize(5 + SIZE, 0);
    let message = Bytes::from(message);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true).ok();
        let message = message.clone();
        tokio::spawn(async move { serve(stream, message).await });
    }
}

async fn serve(stream: TcpStream, message: Bytes) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new().max_concurrent_streams(10_000).handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let message = message.clone();
        tokio::spawn(async move {
            let is_call = request
                .headers()
                .get(CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
            let mut body = request.into_body();
            while let Some(piece) = body.data().await {
                body.flow_control().release_capacity(piece?.len())?;
            }
            let kind = if is_call { "application/grpc" } else { "application/octet-stream" };
            let mut head = Response::new(());
            head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            let mut answer = respond.send_response(head, false)?;
            answer.send_data(message, !is_call)?;
            if is_call {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                answer.send_trailers(trailers)?;
            }
            Ok::<(), h2::Error>(())
        });
    }
    Ok(())
}
