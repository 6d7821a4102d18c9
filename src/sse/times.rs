//! Limits of an event stream.

use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::Spanned;
use crate::manifest::model::StreamLimits;
use crate::units::Dur;
use std::time::Duration;

/// Limits of an event stream, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTimes {
    /// From the request to the first event.
    pub first_event: Duration,
    /// Between two events.
    pub idle: Duration,
    /// For the whole stream.
    pub max: Duration,
    /// Silence after which a comment keeps the caller's connection alive.
    pub heartbeat: Duration,
}

impl StreamTimes {
    /// As `x-stream` of the documentation says them.
    pub fn document(&self) -> serde_json::Value {
        serde_json::json!({
            "first_event": Dur(self.first_event).to_string(),
            "idle": Dur(self.idle).to_string(),
            "max": Dur(self.max).to_string(),
            "heartbeat": Dur(self.heartbeat).to_string(),
        })
    }

    /// Defaults filled in; contradictions are faults. A default gives way to what is written.
    pub fn check(limits: Option<&Spanned<StreamLimits>>, out: &mut Diagnostics) -> StreamTimes {
        let none = StreamLimits::default();
        let limits = limits.map_or(&none, |limits| &limits.value);
        let max = limits.max.as_ref().map_or(Duration::from_secs(120), |max| max.0);
        let mut below = |given: &Option<Spanned<Dur>>,
                         name: &str,
                         default: u64,
                         limit: (&str, Duration, Option<Span>)| {
            let (limit_name, limit, limit_span) = limit;
            match given {
                None => Duration::from_secs(default).min(limit),
                Some(given) => {
                    if given.0 >= limit {
                        let message = format!(
                            "`{limit_name}` ({}) always ends the stream before `{name}` ({})",
                            Dur(limit),
                            Dur(given.0)
                        );
                        let mut fault = Diagnostic::error(Code::DEADLINES, given.span, message)
                            .help(format!("make `{name}` shorter than `{limit_name}`"));
                        if let Some(span) = limit_span {
                            fault = fault.note(span, format!("`{limit_name}` is set here"));
                        }
                        out.push(fault);
                    }
                    given.0
                }
            }
        };
        let whole = ("max", max, limits.max.as_ref().map(|max| max.span));
        let first_event = below(&limits.first_event, "first_event", 15, whole);
        let idle = below(&limits.idle, "idle", 60, whole);
        let heartbeat = match &limits.heartbeat {
            None => Duration::from_secs(15).min(idle / 2),
            Some(heartbeat) => {
                if heartbeat.0 >= idle {
                    let message = format!(
                        "`idle` ({}) is not longer than `heartbeat` ({})",
                        Dur(idle),
                        Dur(heartbeat.0)
                    );
                    let mut fault = Diagnostic::error(Code::DEADLINES, heartbeat.span, message)
                        .help("a timeout shorter than the heartbeat ends the stream before the first one: make `heartbeat` shorter");
                    if let Some(idle) = &limits.idle {
                        fault = fault.note(idle.span, "`idle` is set here");
                    }
                    out.push(fault);
                }
                heartbeat.0
            }
        };
        StreamTimes { first_event, idle, max, heartbeat }
    }
}
