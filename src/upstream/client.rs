//! Opens connections: name, socket, TLS, HTTP/1.1. All of it within one deadline.
//!
//! Proxies named by the environment play no part, because nothing here reads it.

use super::http1::{Http1, Socket};
use super::pool::Conn;
use super::spec::ServerSpec;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// Requests.
    Requests,
    /// One request that may switch protocols; how long the server may be silent before the kernel asks for it.
    Upgrade { probe: Duration },
}

/// Opens a connection within `patience`. The error is for logs.
pub(super) async fn connect(
    server: &ServerSpec,
    tls: Option<&Arc<ClientConfig>>,
    patience: Duration,
    purpose: Purpose,
) -> io::Result<Conn> {
    let deadline = Instant::now() + patience;
    let all = async {
        let socket = dial(server, deadline).await?;
        // Small pieces of streams must not wait for acknowledgements.
        socket.set_nodelay(true)?;
        if let Purpose::Upgrade { probe } = purpose {
            // A server that vanished says nothing, and neither may its caller.
            // The kernel counts in seconds.
            let probe = probe.max(Duration::from_secs(1));
            let probes = TcpKeepalive::new().with_time(probe).with_interval(probe).with_retries(3);
            SockRef::from(&socket).set_tcp_keepalive(&probes)?;
        }
        let socket = match (&server.tls, tls) {
            (Some(name), Some(config)) => {
                let connector = TlsConnector::from(config.clone());
                Socket::Tls(Box::new(connector.connect(name.clone(), socket).await?))
            }
            _ => Socket::Plain(socket),
        };
        Ok(Conn::new(Http1::new(socket)))
    };
    timeout_at(deadline, all).await.unwrap_or_else(|_| Err(late()))
}

pub(super) fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no connection in time")
}

/// A socket to the first address that answers. Each address gets its share of the time that is left, so that a dead
/// one does not use up that of the others.
pub(super) async fn dial(server: &ServerSpec, deadline: Instant) -> io::Result<TcpStream> {
    if let Some(address) = server.literal {
        return TcpStream::connect(address).await;
    }
    let mut found = server.resolved.clone();
    if found.is_empty() {
        found.extend(tokio::net::lookup_host((server.host.as_str(), server.port)).await?);
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host's name has no address");
    for (tried, address) in found.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (found.len() - tried) as u32;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error,
            Err(_) => last = late(),
        }
    }
    Err(last)
}
