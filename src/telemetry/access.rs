//! The access log: one line a request, written when the exchange is over.
//!
//! A line is put together as bytes in the thread's buffer and handed to [`Lines`]; it goes round `tracing`, whose
//! dispatch a line per request need not pay for. The path is the normalised one, without its query: tokens in a
//! query are never logged. Lines are `info`, of server faults `warn`; a filter such as `info,access=warn` keeps
//! only the latter.

use super::lines::Lines;
use super::logs::{self, AccessLevels, LogGuard, Style};
use super::write::{self, Form};
use crate::exchange::{Exchange, Observer};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tracing::Level;

/// Writes the line of an exchange; as an [`Observer`], when it is over.
#[derive(Debug)]
pub struct AccessLog {
    lines: Arc<Lines>,
    style: Style,
    levels: AccessLevels,
}

impl AccessLog {
    pub(super) fn new(log: &LogGuard) -> Self {
        Self::to(log.lines().clone(), log.style(), log.access)
    }

    pub(super) fn to(lines: Arc<Lines>, style: Style, levels: AccessLevels) -> Self {
        AccessLog { lines, style, levels }
    }

    /// Writes nothing.
    pub(super) fn nowhere() -> Self {
        let style = Style { json: true, colour: false };
        Self::to(Lines::nowhere(), style, AccessLevels { info: false, warn: false })
    }

    /// Writes the line of an exchange that took so long.
    pub fn write(&self, exchange: &Exchange, duration: Duration) {
        let (level, wanted) = match exchange.is_fault() {
            true => (Level::WARN, self.levels.warn),
            false => (Level::INFO, self.levels.info),
        };
        if !wanted {
            return;
        }
        logs::line(&self.lines, |line| {
            logs::head(line, self.style, exchange.at, level, "access");
            match self.style.json {
                true => json(line, exchange, duration),
                false => pretty(line, exchange, duration),
            }
        });
    }
}

impl Observer for AccessLog {
    fn finished(&self, exchange: &Exchange) {
        self.write(exchange, exchange.started.elapsed());
    }
}

fn json(line: &mut Vec<u8>, exchange: &Exchange, duration: Duration) {
    let text = |line: &mut Vec<u8>, name: &str, value: &str| {
        name_of(line, name);
        write::json_string(line, value);
    };
    let number = |line: &mut Vec<u8>, name: &str, value: u64| {
        name_of(line, name);
        write::number(line, value);
    };
    let time = |line: &mut Vec<u8>, name: &str, value: Duration| {
        name_of(line, name);
        write::millis(line, value);
    };
    text(line, "request_id", exchange.request_id());
    if let Some(trace) = exchange.trace() {
        text(line, "trace_id", &trace.trace_id());
    }
    name_of(line, "client");
    line.push(b'"');
    address(line, exchange.client_ip);
    line.push(b'"');
    text(line, "method", exchange.method.as_str());
    match exchange.route() {
        Some(route) => text(line, "route", &route.template),
        None => {
            name_of(line, "route");
            line.extend_from_slice(b"null");
        }
    }
    text(line, "path", &exchange.path);
    if let Some(version) = exchange.route().and_then(|route| route.version.as_deref()) {
        text(line, "version", version);
    }
    number(line, "status", exchange.status().into());
    if let Some(code) = exchange.grpc_status() {
        number(line, "grpc_status", code as u64);
    }
    text(line, "end", exchange.end().word());
    number(line, "bytes_in", exchange.bytes_in());
    number(line, "bytes_out", exchange.bytes_out());
    time(line, "duration_ms", duration);
    if let Some(first) = exchange.first_byte() {
        time(line, "first_byte_ms", first);
    }
    if let Some(note) = exchange.upstream() {
        text(line, "upstream", &note.upstream);
        text(line, "upstream_target", &note.target);
        if exchange.tries() > 1 {
            number(line, "upstream_tries", exchange.tries().into());
        }
    }
    if let Some(took) = exchange.upstream_time() {
        time(line, "upstream_ms", took);
    }
    if let Some(kind) = exchange.degraded() {
        text(line, "degraded", kind.word());
    }
    line.extend_from_slice(b"}\n");
}

/// `GET /a/b 200 1.234ms`, then the rest as fields.
fn pretty(line: &mut Vec<u8>, exchange: &Exchange, duration: Duration) {
    let text = |line: &mut Vec<u8>, name: &str, value: &str| {
        line.extend_from_slice(name.as_bytes());
        write::escaped(line, value, Form::Plain);
    };
    text(line, "", exchange.method.as_str());
    text(line, " ", &exchange.path);
    line.push(b' ');
    write::number(line, exchange.status());
    if let Some(code) = exchange.grpc_status() {
        line.extend_from_slice(b" grpc=");
        write::number(line, code as u8);
    }
    line.push(b' ');
    write::millis(line, duration);
    line.extend_from_slice(b"ms");
    text(line, " end=", exchange.end().word());
    if let Some(route) = exchange.route() {
        text(line, " route=", &route.template);
    }
    line.extend_from_slice(b" client=");
    address(line, exchange.client_ip);
    line.extend_from_slice(b" bytes_in=");
    write::number(line, exchange.bytes_in());
    line.extend_from_slice(b" bytes_out=");
    write::number(line, exchange.bytes_out());
    if let Some(first) = exchange.first_byte() {
        line.extend_from_slice(b" first_byte_ms=");
        write::millis(line, first);
    }
    if let Some(note) = exchange.upstream() {
        text(line, " upstream=", &note.upstream);
        text(line, " upstream_target=", &note.target);
        if exchange.tries() > 1 {
            line.extend_from_slice(b" upstream_tries=");
            write::number(line, exchange.tries());
        }
    }
    if let Some(took) = exchange.upstream_time() {
        line.extend_from_slice(b" upstream_ms=");
        write::millis(line, took);
    }
    if let Some(kind) = exchange.degraded() {
        text(line, " degraded=", kind.word());
    }
    text(line, " request_id=", exchange.request_id());
    if let Some(trace) = exchange.trace() {
        text(line, " trace_id=", &trace.trace_id());
    }
    line.push(b'\n');
}

fn name_of(line: &mut Vec<u8>, name: &str) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
}

fn address(line: &mut Vec<u8>, address: IpAddr) {
    use std::io::Write;
    // Writing into a Vec cannot fail.
    let _ = write!(line, "{address}");
}
