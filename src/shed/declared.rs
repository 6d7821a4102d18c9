//! What the manifest says of a gate, checked; the same words at a route and at an upstream.

use super::{Caps, GradientSpec};
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::Spanned;
use crate::manifest::model::Adaptive;
use std::time::Duration;

impl Caps {
    /// Is it sound? Reports every fault; what is faulty bounds nothing.
    pub fn check(
        max_in_flight: Option<&Spanned<u32>>,
        adaptive: Option<&Spanned<Adaptive>>,
        out: &mut Diagnostics,
    ) -> Caps {
        if let Some(max) = max_in_flight.filter(|max| max.value == 0) {
            out.push(
                bad(max.span, "with no request under way none could be answered")
                    .help("write at least 1; `maintenance:` switches a route off"),
            );
        }
        Caps {
            max_in_flight: max_in_flight.map(|max| max.value),
            adaptive: adaptive.and_then(|adaptive| gradient(adaptive, max_in_flight, out)),
        }
    }
}

fn bad(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::BAD_VALUE, span, message)
}

fn gradient(
    adaptive: &Spanned<Adaptive>,
    fixed: Option<&Spanned<u32>>,
    out: &mut Diagnostics,
) -> Option<GradientSpec> {
    let before = out.counts().0;
    let Adaptive { min, max, window, remeasure } = &adaptive.value;
    let (least, most) =
        (min.as_ref().map_or(10, |min| min.value), max.as_ref().map_or(1000, |max| max.value));
    if let Some(min) = min.as_ref().filter(|min| min.value == 0) {
        out.push(bad(min.span, "with a bound of 0 nothing could be measured").help("write at least 1"));
    }
    if least > most {
        let span = max.as_ref().or(min.as_ref()).map_or(adaptive.span, |given| given.span);
        out.push(
            bad(span, format!("`min` is {least}, but `max` is {most}"))
                .help("make `max` the larger; they are 10 and 1000 where they are not given"),
        );
    }
    if let Some(fixed) = fixed.filter(|fixed| fixed.value < least && least <= most) {
        out.push(
            bad(fixed.span, format!("`adaptive` never goes below {least}, so it would never matter"))
                .help("make `max_in_flight` larger than `adaptive.min`, or remove one of the two"),
        );
    }
    let window = window.map_or(Duration::from_millis(100), |window| window.0);
    if let Some(remeasure) = remeasure.as_ref().filter(|remeasure| remeasure.value.0 < window * 10) {
        out.push(
            Diagnostic::error(
                Code::DEADLINES,
                remeasure.span,
                "an idle server would be measured for much of the time",
            )
            .help("make `remeasure` at least ten times `window`"),
        );
    }
    let remeasure = remeasure.as_ref().map_or((window * 10).max(Duration::from_secs(30)), |it| it.value.0);
    (out.counts().0 == before).then_some(GradientSpec { min: least, max: most, window, remeasure })
}
