//! What happened to accounts, as lines of the log under the target `voicegate::audit`: `by` whom, which `action`, on which
//! `subject`, with which `value`. What administrators do is a warning, what users do themselves is information.
//!
//! Refreshes are no line: they are many, and change nothing. Nothing here is a secret, and a name that was typed is only
//! written where it locked: people type passwords into the wrong field.

/// What an administrator did.
pub(super) fn administered(by: &str, action: &'static str, subject: &str, value: &str) {
    tracing::warn!(target: "voicegate::audit", by, action, subject, value, "administered");
}

/// What a user did to the own account.
pub(super) fn own(user: &str, action: &'static str, value: &str) {
    tracing::info!(target: "voicegate::audit", by = user, action, subject = user, value, "account");
}

/// What somebody unknown did to an account, and what was done about it.
pub(super) fn alarm(action: &'static str, subject: &str, value: &str) {
    tracing::warn!(target: "voicegate::audit", by = "somebody", action, subject, value, "alarm");
}
