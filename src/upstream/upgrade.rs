//! A request that switches protocols (RFC 9110, section 7.8), over a connection of its own.
//!
//! The connection holds one of its server's `max_connections` slots for as long as it is open. Nothing of the caller's
//! goes over it before the server's 101; any other answer is an ordinary response. A request to switch is never sent
//! twice: what it would open cannot be told apart from what it has opened.

use super::Upstream;
use super::body::{RequestBody, UpstreamBody};
use super::circuits::Chosen;
use super::client::Purpose;
use super::http1::Socket;
use super::outcome::Outcome;
use super::pool::{Conn, Lease, Server};
use super::send::{Deadlines, SendOptions, begun, head, outcome_of};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::shed::Pass;
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, StatusCode, Version, response};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What a server said to a request to switch.
#[derive(Debug)]
pub enum Switch {
    /// 101: its head, and the connection.
    Switched(Box<response::Parts>, UpstreamSocket),
    /// Anything else, an ordinary response.
    Declined(Box<Response<UpstreamBody>>),
}

impl Switch {
    fn status(&self) -> u16 {
        match self {
            Switch::Switched(head, _) => head.status.as_u16(),
            Switch::Declined(response) => response.status().as_u16(),
        }
    }
}

/// A connection that speaks something else than HTTP now. Dropping it closes it and gives its slot back.
pub struct UpstreamSocket {
    io: Socket,
    /// What came with the head that switched.
    ahead: Bytes,
    _lease: Lease,
    _upstream: Arc<Upstream>,
    /// Where the upstream counts what is under way.
    pass: Option<Pass>,
}

impl Upstream {
    /// [`switch`](Upstream::switch), once it is let in.
    pub(super) async fn switch_admitted(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        request: Request<()>,
        probe: Duration,
    ) -> Result<Switch, GatewayError> {
        let began = Instant::now();
        let times = self.spec.timeouts();
        let until = began + times.total;
        let deadlines =
            Deadlines { first_byte: times.first_byte, idle: Some(times.idle), until: Some(until) };
        let key = self.key(exchange, request.uri(), request.headers(), &SendOptions::default());
        let Chosen { server, passages } = self.pick(key, &[])?;
        exchange.sent_to(server.note.clone());
        exchange.tried();
        let switched = self.switch_at(exchange, &server, request, probe, &deadlines).await;
        match &switched {
            Ok(switch) => passages.tell(Outcome::Answered { status: switch.status(), took: began.elapsed() }),
            Err(error) => passages.tell(outcome_of(error.kind)),
        }
        switched
    }

    async fn switch_at(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        server: &Arc<Server>,
        request: Request<()>,
        probe: Duration,
        deadlines: &Deadlines,
    ) -> Result<Switch, GatewayError> {
        let (began, times) = (Instant::now(), self.spec.timeouts());
        let mut request = request.map(|()| RequestBody::empty());
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(HOST, server.spec.authority.clone());
        let patience = self.spec.connect_timeout();
        let Some(mut lease) = server.lease(patience).await else {
            let why = "every connection is in use";
            return Err(self.failed(exchange, server, Kind::UpstreamSaturated, &why));
        };
        let conn = self.open(exchange, server, patience, Purpose::Upgrade { probe }).await?;
        let conn = lease.conn.insert(conn);
        let answer = head(conn, request, None, deadlines).await;
        let response = answer.map_err(|fail| self.explain(exchange, server, fail, None))?;
        let took = began.elapsed();
        exchange.upstream_answered(took);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.observe(server, Outcome::Answered { status: response.status().as_u16(), took });
            let (response, close_delimited) = begun(response, &mut lease);
            return Ok(Switch::Declined(Box::new(response.map(|source| {
                let upstream = self.clone();
                let mut body =
                    UpstreamBody::new(source, lease, upstream, exchange.clone(), None, close_delimited);
                body.set_limits(Some(times.idle), deadlines.until);
                body
            }))));
        }
        // What is left of the lease is the slot.
        let Some((io, ahead)) = lease.conn.take().and_then(Conn::into_socket) else {
            let why = "it switched protocols before it was asked to";
            return Err(self.failed(exchange, server, Kind::UpstreamBadResponse, &why));
        };
        self.observe(server, Outcome::Answered { status: response.status().as_u16(), took });
        let socket = UpstreamSocket { io, ahead, _lease: lease, _upstream: self.clone(), pass: None };
        Ok(Switch::Switched(Box::new(response.into_parts().0), socket))
    }

    /// The error for a server whose 101 cannot be believed; `why` is for the log.
    pub fn misbehaved(&self, exchange: &Exchange, why: &'static str) -> GatewayError {
        let note = exchange.upstream();
        let view = self.cluster.view();
        let same =
            |server: &&Arc<Server>| note.as_ref().is_some_and(|note| note.target == server.note.target);
        let server = view.servers.iter().find(same);
        match server {
            Some(server) => {
                server.judge(Outcome::Failed(Kind::UpstreamBadResponse));
                self.failed(exchange, server, Kind::UpstreamBadResponse, &why)
            }
            None => Kind::UpstreamBadResponse.into(),
        }
    }
}

impl UpstreamSocket {
    /// With the right to be under way, which it gives back at its end.
    pub(super) fn holding(mut self, pass: Pass) -> Self {
        self.pass = Some(pass);
        self
    }
}

impl fmt::Debug for UpstreamSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamSocket").field("upstream", &self._upstream).finish_non_exhaustive()
    }
}

impl AsyncRead for UpstreamSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpstreamSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
