//! Operations that are part of the contract and not built yet: naming one is refused with what it waits for.

/// Name, and the part of the work that brings it.
pub const PLANNED: &[(&str, &str)] = &[
    ("auth.register", "Identity, access and limits"),
    ("auth.login", "Identity, access and limits"),
    ("auth.refresh", "Identity, access and limits"),
    ("auth.logout", "Identity, access and limits"),
    ("auth.me", "Identity, access and limits"),
    ("auth.password_change", "Identity, access and limits"),
    ("auth.password_forgot", "Identity, access and limits"),
    ("auth.password_reset", "Identity, access and limits"),
    ("auth.wechat_login", "Identity, access and limits"),
    ("auth.ticket", "Every protocol"),
    ("sessions.create", "Conversations"),
    ("sessions.list", "Conversations"),
    ("sessions.get", "Conversations"),
    ("sessions.update", "Conversations"),
    ("sessions.delete", "Conversations"),
    ("sessions.messages", "Conversations"),
    ("chat.stream", "Conversations"),
    ("chat.cancel", "Conversations"),
    ("gateway.openapi", "Documents that can't be wrong"),
    ("gateway.docs", "Documents that can't be wrong"),
];
