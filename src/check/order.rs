//! Constraints on the order of a chain, each with its reason. The order itself is the manifest's.

use super::chains::Link;
use crate::diag::{Code, Diagnostic, Diagnostics};

/// `stage` must have one of `after` further out.
struct After {
    stage: &'static str,
    /// Any of these will do.
    after: &'static [&'static str],
    reason: &'static str,
    /// Whether it is a fault too if none of them is there at all.
    required: bool,
}

const RULES: &[After] = &[
    After {
        stage: "rbac",
        after: &["auth", "api_key"],
        reason: "it decides by the caller's role, which `auth` or `api_key` finds out",
        required: true,
    },
    After {
        stage: "tenant",
        after: &["auth", "api_key"],
        reason: "the tenant comes from the caller's token",
        required: true,
    },
    After {
        stage: "auth",
        after: &["cors"],
        reason: "a browser's preflight carries no token, and an error without CORS headers can't be read",
        required: false,
    },
    After {
        stage: "rate_limit",
        after: &["cors"],
        reason: "a browser can't read a 429 without CORS headers",
        required: false,
    },
    After {
        stage: "cache",
        after: &["auth"],
        reason: "a cached answer must not be given to somebody who may not see it",
        required: false,
    },
    After {
        stage: "cache",
        after: &["api_key"],
        reason: "a cached answer must not be given to somebody who may not see it",
        required: false,
    },
    After {
        stage: "cache",
        after: &["rbac"],
        reason: "a cached answer must not be given to somebody who may not see it",
        required: false,
    },
    After {
        stage: "cache",
        after: &["tenant"],
        reason: "a cached answer must not be given to somebody who may not see it",
        required: false,
    },
    After {
        stage: "cache",
        after: &["ip_filter"],
        reason: "a cached answer must not be given to somebody who may not see it",
        required: false,
    },
    After {
        stage: "cache",
        after: &["access_log"],
        reason: "what is answered from memory would not be logged",
        required: false,
    },
    After {
        stage: "cache",
        after: &["metrics"],
        reason: "what is answered from memory would not be counted",
        required: false,
    },
    After {
        stage: "cache",
        after: &["recovery"],
        reason: "it answers for what fails at the cache too",
        required: false,
    },
    After {
        stage: "cache",
        after: &["request_id"],
        reason: "an id is of one request, not of a copy",
        required: false,
    },
    After {
        stage: "cache",
        after: &["cors"],
        reason: "what a browser is told depends on where it asks from",
        required: false,
    },
    After {
        stage: "validate",
        after: &["body_limit"],
        reason: "it reads the body, which must be bounded",
        required: false,
    },
    After {
        stage: "transform",
        after: &["body_limit"],
        reason: "it reads the body, which must be bounded",
        required: false,
    },
    After {
        stage: "inspect",
        after: &["body_limit"],
        reason: "it reads the body, which must be bounded",
        required: false,
    },
    After {
        stage: "timeout",
        after: &["access_log"],
        reason: "what it cuts off would not be logged",
        required: false,
    },
];

/// Stages that may stand more than once: each adds something of its own.
const REPEATABLE: &[&str] = &["headers", "rate_limit", "transform", "ip_filter", "concurrency"];

/// Stages that find out who is calling.
pub const IDENTIFY: &[&str] = &["auth", "api_key"];

/// Checks one chain.
pub fn check(links: &[Link], out: &mut Diagnostics) {
    for (at, link) in links.iter().enumerate() {
        let Some(word) = link.stage.as_ref().and_then(|stage| stage.facts().needs_identity) else { continue };
        let known = links[..at].iter().any(Link::refuses_strangers);
        let later = links[at..].iter().find(|inner| IDENTIFY.contains(&inner.name));
        if let (false, Some(inner)) = (known, later) {
            let message = format!("`{}` counts by `{word}` before `{}`", link.name, inner.name);
            out.push(
                Diagnostic::error(Code::STAGE_ORDER, link.span, message)
                    .help(format!(
                        "put it behind `{}`: until then nobody knows who is calling, and all count by address",
                        inner.name
                    ))
                    .note(inner.span, format!("`{}` stands here, further in", inner.name)),
            );
        }
    }
    for (at, link) in links.iter().enumerate() {
        let condition = link.stage.as_ref().and_then(|stage| stage.condition());
        let asks = condition.is_some_and(|condition| condition.uses().claims);
        if asks && !links[..at].iter().any(|outer| IDENTIFY.contains(&outer.name)) {
            let message = format!("`{}` goes by `claims` before anybody knows who is calling", link.name);
            let later = links[at + 1..].iter().find(|inner| IDENTIFY.contains(&inner.name));
            let fault = Diagnostic::error(Code::STAGE_ORDER, link.span, message);
            out.push(match later {
                Some(inner) => fault
                    .help(format!("put it behind `{}`", inner.name))
                    .note(inner.span, format!("`{}` stands here, further in", inner.name)),
                None => fault.help("put `auth` or `api_key` before it, or let its condition go by `request`"),
            });
        }
    }
    for (at, link) in links.iter().enumerate() {
        let optional = link.stage.as_ref().is_some_and(|stage| stage.facts().lets_strangers_pass);
        if let Some(auth) = links[..at].iter().find(|outer| optional && outer.refuses_strangers()) {
            let message = format!("an optional `{}` stands behind `{}`", link.name, auth.name);
            out.push(
                Diagnostic::error(Code::STAGE_ORDER, link.span, message)
                    .help(format!(
                        "put it before `{}`, which refuses callers that bring nothing else",
                        auth.name
                    ))
                    .note(auth.span, format!("`{}` stands here, further out", auth.name)),
            );
        }
    }
    for rule in RULES {
        for (at, link) in links.iter().enumerate().filter(|(_, link)| link.name == rule.stage) {
            if links[..at].iter().any(|outer| rule.after.contains(&outer.name)) {
                continue;
            }
            let inner = links[at..].iter().find(|inner| rule.after.contains(&inner.name));
            let names = rule.after.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
            if let Some(inner) = inner {
                let message = format!("`{}` stands before `{}`", link.name, inner.name);
                out.push(
                    Diagnostic::error(Code::STAGE_ORDER, link.span, message)
                        .help(format!("put {names} before it: {}", rule.reason))
                        .note(inner.span, format!("`{}` stands here, further in", inner.name)),
                );
            } else if rule.required {
                let message = format!("`{}` needs {names} before it", link.name);
                out.push(Diagnostic::error(Code::STAGE_ORDER, link.span, message).help(rule.reason));
            }
        }
    }
    for (at, link) in links.iter().enumerate() {
        let first = links[..at].iter().find(|outer| outer.name == link.name);
        if let Some(first) = first
            && !REPEATABLE.contains(&link.name)
        {
            out.push(
                Diagnostic::error(
                    Code::STAGE_TWICE,
                    link.span,
                    format!("stage `{}` stands twice in a chain", link.name),
                )
                .help("keep one; `with:` changes a stage's body for one route")
                .note(first.span, "first stands here"),
            );
        }
    }
}
