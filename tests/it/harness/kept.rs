//! A connection that is kept for many requests, as a keep-alive client keeps it.

use super::Client;
use super::client::{Answer, PATIENCE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// One open connection.
pub struct Kept {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Kept {
    pub async fn open(client: &Client) -> Self {
        let stream = TcpStream::connect(client.address()).await.expect("the gateway listens");
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Kept { client: client.clone(), sender, driver }
    }

    /// Sends on this connection and reads the whole answer.
    pub async fn send(&mut self, method: &str, path: &str) -> Result<Answer, hyper::Error> {
        self.send_with(method, path, &[], "").await
    }

    /// As [`Kept::send`], with headers and a body.
    pub async fn send_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, hyper::Error> {
        let all = async {
            self.sender.ready().await?;
            let request = self.client.request(method, path, headers, body);
            let response = self.sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let collected = body.collect().await?;
            Ok(Answer { status: parts.status, headers: parts.headers, body: collected.to_bytes() })
        };
        tokio::time::timeout(PATIENCE, all).await.expect("an answer in time")
    }
}
