//! The way in: whether the upstream is given one more request, before anything else is done about it.
//!
//! One pass counts for the whole request, however often it is tried, until its answer's last byte was read or a
//! switched connection ends. Health checks and questions for descriptors need none.

use super::upgrade::Switch;
use super::{SendOptions, Upstream, UpstreamBody};
use crate::error::GatewayError;
use crate::exchange::Exchange;
use crate::shed::Pass;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use std::io;
use std::sync::Arc;
use std::time::Duration;

impl Upstream {
    /// Sends a request and waits for its response's head; the body follows as it comes.
    ///
    /// `request` has its path and headers as the server is to see them; `Host` is set here.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] as many as may be are under way, and nothing was sent;
    /// [`Kind::UpstreamUnreachable`] no connection; [`Kind::UpstreamSaturated`] no free connection within
    /// `connect_timeout`; [`Kind::UpstreamReset`] it broke before an answer; [`Kind::UpstreamBadResponse`] the answer
    /// is no acceptable HTTP; [`Kind::UpstreamTimeout`] no answer in time; [`Kind::RequestTimeout`] and
    /// [`Kind::BadRequest`] the caller's own body stalled or broke off (or the error that its reader raised).
    ///
    /// [`Kind::Overloaded`]: crate::error::Kind::Overloaded
    /// [`Kind::UpstreamUnreachable`]: crate::error::Kind::UpstreamUnreachable
    /// [`Kind::UpstreamSaturated`]: crate::error::Kind::UpstreamSaturated
    /// [`Kind::UpstreamReset`]: crate::error::Kind::UpstreamReset
    /// [`Kind::UpstreamBadResponse`]: crate::error::Kind::UpstreamBadResponse
    /// [`Kind::UpstreamTimeout`]: crate::error::Kind::UpstreamTimeout
    /// [`Kind::RequestTimeout`]: crate::error::Kind::RequestTimeout
    /// [`Kind::BadRequest`]: crate::error::Kind::BadRequest
    pub async fn send(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        request: Request<BoxBody<Bytes, io::Error>>,
        options: &SendOptions,
    ) -> Result<Response<UpstreamBody>, GatewayError> {
        let pass = self.admit(exchange)?;
        let sent = self.send_admitted(exchange, request, options).await;
        let Some(pass) = pass else { return sent };
        took_note(&pass, sent.as_ref().map(|response| response.status().as_u16()));
        sent.map(|response| response.map(|body| body.holding(pass)))
    }

    /// Asks a server to switch protocols. `request` has its path and headers, `Connection` and `Upgrade` among them, as
    /// the server is to see them; `Host` is set here. `probe` is how long the server may be silent before the kernel
    /// asks whether it is still there.
    ///
    /// # Errors
    /// As of [`send`](Upstream::send), but for what concerns a caller's body.
    pub async fn switch(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        request: Request<()>,
        probe: Duration,
    ) -> Result<Switch, GatewayError> {
        let pass = self.admit(exchange)?;
        let answered = self.switch_admitted(exchange, request, probe).await;
        let Some(pass) = pass else { return answered };
        let status = answered.as_ref().map(|switch| match switch {
            Switch::Switched(..) => 101,
            Switch::Declined(response) => response.status().as_u16(),
        });
        took_note(&pass, status);
        Ok(match answered? {
            Switch::Switched(head, socket) => Switch::Switched(head, socket.holding(pass)),
            Switch::Declined(response) => Switch::Declined(Box::new(response.map(|body| body.holding(pass)))),
        })
    }

    fn admit(&self, exchange: &Exchange) -> Result<Option<Pass>, GatewayError> {
        let Some(gate) = &self.gate else { return Ok(None) };
        gate.enter().map(Some).map_err(|reason| self.shared.pressure.refuse(exchange, reason))
    }
}

/// What an answer's time says of how busy the upstream is: nothing where it is an error that came at once.
fn took_note(pass: &Pass, status: Result<u16, &GatewayError>) {
    let status = status.unwrap_or_else(|error| error.kind.status().as_u16());
    if status < 400 || status == 504 {
        pass.answered();
    }
}
