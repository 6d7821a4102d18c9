//! Log lines of the gateway itself: `tracing` events as JSON or for people, to stderr.
//!
//! Events are written by our own layer rather than the subscriber's formatter: it shares its escaping and field
//! names with the access log, and its lines go through [`Lines`], which never makes a request wait. Spans are not
//! shown: a line says what it has to say in its own fields.

use super::lines::{Lines, Writer};
use super::write::{self, Escaping, Form};
use crate::settings::{LogFormat, Settings};
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error(
        "LOG_LEVEL `{0}` is not a level (error, warn, info, debug, trace, off) or a filter such as `info,hyper=warn`: {1}"
    )]
    Filter(String, String),
    /// No thread for the writer.
    #[error("the thread that writes the log could not be started: {0}")]
    Thread(#[from] io::Error),
    /// It had started before.
    #[error("logging was already started in this process")]
    Twice,
}

/// Keeps logs flowing. When it is dropped, what is queued is written first (for at most two seconds).
#[derive(Debug)]
pub struct LogGuard {
    writer: Writer,
    style: Style,
    pub(super) access: AccessLevels,
}

/// What lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) json: bool,
    pub(super) colour: bool,
}

/// Which lines of the access log pass the filter.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccessLevels {
    pub(super) info: bool,
    pub(super) warn: bool,
}

/// Starts logging to stderr for the whole process.
pub fn init(settings: &Settings) -> Result<LogGuard, LogError> {
    let terminal = io::stderr().is_terminal();
    let json = match settings.log_format {
        Some(format) => format == LogFormat::Json,
        None => !terminal,
    };
    let colour = !json && terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let style = Style { json, colour };
    let filter = filter(&settings.log_level)?;
    let limit = usize::try_from(settings.log_buffer.0).unwrap_or(usize::MAX / 2);
    let writer = Writer::start(io::stderr(), limit, json)?;
    let layer = LineLayer { lines: writer.lines().clone(), style };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(layer))
        .map_err(|_| LogError::Twice)?;
    Ok(LogGuard { writer, style, access: AccessLevels::of_filter() })
}

impl LogGuard {
    /// Where finished lines go in.
    pub fn lines(&self) -> &Arc<Lines> {
        self.writer.lines()
    }

    pub(super) fn style(&self) -> Style {
        self.style
    }
}

impl AccessLevels {
    /// What the filter in force lets pass.
    fn of_filter() -> Self {
        AccessLevels {
            info: tracing::enabled!(target: "access", Level::INFO),
            warn: tracing::enabled!(target: "access", Level::WARN),
        }
    }
}

/// Reads a level or a filter. Stricter than [`EnvFilter`], which takes a misspelt level for a module's name, and
/// then logs nothing.
fn filter(text: &str) -> Result<EnvFilter, LogError> {
    let failed = |why: String| LogError::Filter(text.to_owned(), why);
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.contains(['=', '['])) {
        let known = ["error", "warn", "info", "debug", "trace", "off"];
        if !known.iter().any(|level| level.eq_ignore_ascii_case(directive)) {
            return Err(failed(format!("`{directive}` is not a level")));
        }
    }
    EnvFilter::builder().parse(text).map_err(|error| failed(error.to_string()))
}

/// Writes events as lines.
struct LineLayer {
    lines: Arc<Lines>,
    style: Style,
}

thread_local! {
    /// The line a thread is writing; kept, so that its memory is.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer to build a line in, and hands the line on.
pub(super) fn line(lines: &Lines, build: impl FnOnce(&mut Vec<u8>)) {
    LINE.with(|cell| {
        // A value that logs while it is being logged finds the buffer in use, and gets one of its own.
        match cell.try_borrow_mut() {
            Ok(mut line) => {
                line.clear();
                build(&mut line);
                lines.append(&line);
                line.shrink_to(1 << 14);
            }
            Err(_) => {
                let mut line = Vec::new();
                build(&mut line);
                lines.append(&line);
            }
        }
    });
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        line(&self.lines, |line| {
            let meta = event.metadata();
            head(line, self.style, SystemTime::now(), *meta.level(), meta.target());
            if self.style.json {
                event.record(&mut JsonFields(line));
                line.extend_from_slice(b"}\n");
            } else {
                event.record(&mut Message(line));
                event.record(&mut PlainFields(line));
                line.push(b'\n');
            }
        });
    }
}

/// Begins a line: time, level, target.
pub(super) fn head(line: &mut Vec<u8>, style: Style, at: SystemTime, level: Level, target: &str) {
    let (word, padded, colour) = match level {
        Level::ERROR => ("error", "ERROR", "31"),
        Level::WARN => ("warn", " WARN", "33"),
        Level::INFO => ("info", " INFO", "32"),
        Level::DEBUG => ("debug", "DEBUG", "34"),
        Level::TRACE => ("trace", "TRACE", "35"),
    };
    if style.json {
        line.extend_from_slice(b"{\"time\":\"");
        write::time(line, at);
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(word.as_bytes());
        line.extend_from_slice(b"\",\"target\":");
        write::json_string(line, target);
        return;
    }
    let paint = |line: &mut Vec<u8>, code: &str| {
        if style.colour {
            line.extend_from_slice(b"\x1b[");
            line.extend_from_slice(code.as_bytes());
            line.push(b'm');
        }
    };
    paint(line, "2");
    write::time(line, at);
    paint(line, "0");
    line.push(b' ');
    paint(line, colour);
    line.extend_from_slice(padded.as_bytes());
    paint(line, "0");
    line.push(b' ');
    paint(line, "2");
    write::escaped(line, target, Form::Plain);
    line.push(b':');
    paint(line, "0");
    line.push(b' ');
}

/// Every field as a member of the line's object.
struct JsonFields<'a>(&'a mut Vec<u8>);

impl JsonFields<'_> {
    fn name(&mut self, field: &Field) {
        self.0.push(b',');
        write::json_string(self.0, field.name());
        self.0.push(b':');
    }
}

impl Visit for JsonFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        self.0.push(b'"');
        let _ = write!(Escaping(self.0, Form::Json), "{value:?}");
        self.0.push(b'"');
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        write::json_string(self.0, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        write::number(self.0, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        write::number(self.0, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        match value.is_finite() {
            true => _ = write!(Escaping(self.0, Form::Json), "{value}"),
            false => self.0.extend_from_slice(b"null"),
        }
    }
}

/// Only the message.
struct Message<'a>(&'a mut Vec<u8>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(Escaping(self.0, Form::Message), "{value:?}");
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            write::escaped(self.0, value, Form::Message);
        }
    }
}

/// Every other field as ` name=value`.
struct PlainFields<'a>(&'a mut Vec<u8>);

impl PlainFields<'_> {
    fn name(&mut self, field: &Field) {
        self.0.push(b' ');
        self.0.extend_from_slice(field.name().as_bytes());
        self.0.push(b'=');
    }
}

impl Visit for PlainFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            self.name(field);
            let _ = write!(Escaping(self.0, Form::Plain), "{value:?}");
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.name(field);
            write::escaped(self.0, value, Form::Plain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Kept;
    use super::*;

    fn logged(json: bool, level: &str, log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = Writer::start(kept.clone(), 1 << 20, json).unwrap();
        let layer = LineLayer { lines: writer.lines().clone(), style: Style { json, colour: false } };
        let subscriber = tracing_subscriber::registry().with(filter(level).unwrap()).with(layer);
        tracing::subscriber::with_default(subscriber, log);
        drop(writer);
        kept.text()
    }

    #[test]
    fn json_lines_keep_types_and_escape_values() {
        let text = logged(true, "info", || {
            let forged = "x\n{\"level\":\"error\"}\u{1b}[31m";
            let cause = std::io::Error::other("no \"such\" thing\n");
            tracing::warn!(n = 7, ok = true, share = 0.5, path = forged, error = %cause, "it is {}", "so");
            tracing::debug!("below the level");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["message"], "it is so");
        assert_eq!(line["n"], 7);
        assert_eq!(line["ok"], true);
        assert_eq!(line["share"], 0.5);
        assert_eq!(line["path"], "x\n{\"level\":\"error\"}\u{1b}[31m");
        assert_eq!(line["error"], "no \"such\" thing\n");
        assert_eq!(line["target"], "voicegate::telemetry::logs::tests");
        line["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }

    #[test]
    fn pretty_lines_escape_values() {
        let text = logged(false, "info", || {
            let forged = "x\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[31m";
            tracing::info!(path = forged, n = 1, "two\nlines \u{7}");
        });
        let (first, second) = text.split_once('\n').unwrap();
        assert!(first.ends_with(" INFO voicegate::telemetry::logs::tests: two"), "{first}");
        assert_eq!(
            second,
            "    lines \\u{07} path=x\\n2026-01-01T00:00:00.000Z ERROR forged\\u{1b}[31m n=1\n"
        );
    }

    #[test]
    fn a_filter_is_a_level_or_names_targets() {
        for good in ["info", "WARN", "off", "info,hyper=warn", "voicegate=debug"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "info,hyper", "hyper=loud", ""] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        let text = filter("inof").unwrap_err().to_string();
        assert!(text.contains("LOG_LEVEL `inof`") && text.contains("info"), "{text}");
    }

    #[test]
    fn a_value_may_log_while_it_is_logged() {
        struct Chatty;
        impl fmt::Display for Chatty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                line(&Lines::nowhere(), |line| line.push(b'x'));
                f.write_str("chatty")
            }
        }
        let text = logged(true, "info", || tracing::info!("{}", Chatty));
        assert!(text.contains("\"chatty\""), "{text}");
    }
}
