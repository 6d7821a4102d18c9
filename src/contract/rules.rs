//! Every kind of change, by a name that stays, and whether it breaks callers.
//!
//! Of a request callers are the writers: what takes less than before breaks them. Of a response they are the readers: what
//! says more than before does. So each rule of schemas is two.

use std::fmt;

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which stays: `operation-removed`.
    pub name: &'static str,
    /// Whether callers that worked may fail.
    pub breaking: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn breaking(name: &'static str) -> Rule {
    Rule { name, breaking: true }
}

const fn harmless(name: &'static str) -> Rule {
    Rule { name, breaking: false }
}

pub(super) const OPERATION_ADDED: Rule = harmless("operation-added");
pub(super) const OPERATION_REMOVED: Rule = breaking("operation-removed");
/// It was deprecated, and the day it was to go is over.
pub(super) const OPERATION_SUNSET: Rule = harmless("operation-removed-after-sunset");
pub(super) const OPERATION_MOVED: Rule = breaking("operation-moved");
/// Generated clients call it by its id.
pub(super) const OPERATION_ID: Rule = breaking("operation-id-changed");
pub(super) const DEPRECATED: Rule = harmless("operation-deprecated");
pub(super) const UNDEPRECATED: Rule = harmless("operation-undeprecated");
pub(super) const SUNSET_SET: Rule = harmless("sunset-set");
pub(super) const SUNSET_SOONER: Rule = breaking("sunset-sooner");
pub(super) const SUNSET_LATER: Rule = harmless("sunset-later");

pub(super) const PARAMETER_ADDED: Rule = harmless("parameter-added");
pub(super) const PARAMETER_ADDED_REQUIRED: Rule = breaking("parameter-added-required");
pub(super) const PARAMETER_REMOVED: Rule = breaking("parameter-removed");
pub(super) const PARAMETER_REQUIRED: Rule = breaking("parameter-became-required");
pub(super) const PARAMETER_OPTIONAL: Rule = harmless("parameter-became-optional");
pub(super) const PARAMETER_STYLE: Rule = breaking("parameter-style-changed");

pub(super) const BODY_ADDED: Rule = harmless("request-body-added");
pub(super) const BODY_ADDED_REQUIRED: Rule = breaking("request-body-added-required");
pub(super) const BODY_REMOVED: Rule = breaking("request-body-removed");
pub(super) const BODY_REQUIRED: Rule = breaking("request-body-became-required");
pub(super) const BODY_OPTIONAL: Rule = harmless("request-body-became-optional");
pub(super) const REQUEST_MEDIA_ADDED: Rule = harmless("request-content-type-added");
pub(super) const REQUEST_MEDIA_REMOVED: Rule = breaking("request-content-type-removed");

pub(super) const STATUS_ADDED: Rule = harmless("response-status-added");
pub(super) const STATUS_REMOVED: Rule = breaking("response-status-removed");
pub(super) const ERROR_ADDED: Rule = harmless("error-status-added");
pub(super) const ERROR_REMOVED: Rule = harmless("error-status-removed");
pub(super) const RESPONSE_MEDIA_ADDED: Rule = harmless("response-content-type-added");
pub(super) const RESPONSE_MEDIA_REMOVED: Rule = breaking("response-content-type-removed");
pub(super) const HEADER_ADDED: Rule = harmless("response-header-added");
pub(super) const HEADER_REMOVED: Rule = harmless("response-header-removed");
/// It was promised with every answer.
pub(super) const REQUIRED_HEADER_REMOVED: Rule = breaking("required-response-header-removed");

/// It was promised with every answer, and may be missing now.
pub(super) const HEADER_OPTIONAL: Rule = breaking("response-header-became-optional");

pub(super) const AUTH_ADDED: Rule = breaking("auth-added");
pub(super) const AUTH_REMOVED: Rule = harmless("auth-removed");
pub(super) const SCHEME_ADDED: Rule = harmless("auth-scheme-added");
pub(super) const SCHEME_REMOVED: Rule = breaking("auth-scheme-removed");
/// Under the same name it is another one, such as a key in another header.
pub(super) const SCHEME_CHANGED: Rule = breaking("auth-scheme-changed");
pub(super) const PERMISSION_ADDED: Rule = breaking("permission-added");
pub(super) const PERMISSION_REMOVED: Rule = harmless("permission-removed");
pub(super) const PERMISSION_CHANGED: Rule = breaking("permission-changed");
pub(super) const ROLES_NARROWED: Rule = breaking("roles-narrowed");
pub(super) const ROLES_WIDENED: Rule = harmless("roles-widened");

pub(super) const LIMIT_ADDED: Rule = breaking("limit-added");
pub(super) const LIMIT_REMOVED: Rule = harmless("limit-removed");
pub(super) const LIMIT_LOWERED: Rule = breaking("limit-lowered");
pub(super) const LIMIT_RAISED: Rule = harmless("limit-raised");
/// Neither more nor less than before, such as another window.
pub(super) const LIMIT_CHANGED: Rule = breaking("limit-changed");

/// Which way a schema's values go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// Callers write them.
    Request,
    /// Callers read them.
    Response,
    /// Callers read them where something went wrong: a code that they do not know is one more status, which breaks nobody.
    Refusal,
}

/// A rule of schemas, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Both {
    pub(super) request: Rule,
    pub(super) response: Rule,
}

impl Both {
    pub(super) fn going(self, way: Way) -> Rule {
        match way {
            Way::Request => self.request,
            Way::Refusal if self == ENUM_WIDENED => REFUSAL_ENUM_WIDENED,
            Way::Response | Way::Refusal => self.response,
        }
    }
}

/// Less is allowed: it breaks writers.
macro_rules! narrows {
    ($name:literal) => {
        Both {
            request: breaking(concat!("request-", $name)),
            response: harmless(concat!("response-", $name)),
        }
    };
}
/// More is allowed: it breaks readers.
macro_rules! widens {
    ($name:literal) => {
        Both {
            request: harmless(concat!("request-", $name)),
            response: breaking(concat!("response-", $name)),
        }
    };
}
macro_rules! breaks {
    ($name:literal) => {
        Both {
            request: breaking(concat!("request-", $name)),
            response: breaking(concat!("response-", $name)),
        }
    };
}
macro_rules! changes {
    ($name:literal) => {
        Both {
            request: harmless(concat!("request-", $name)),
            response: harmless(concat!("response-", $name)),
        }
    };
}

pub(super) const TYPE_NARROWED: Both = narrows!("type-narrowed");
pub(super) const TYPE_WIDENED: Both = widens!("type-widened");
pub(super) const TYPE_CHANGED: Both = breaks!("type-changed");
pub(super) const ENUM_NARROWED: Both = narrows!("enum-narrowed");
pub(super) const ENUM_WIDENED: Both = widens!("enum-widened");
const REFUSAL_ENUM_WIDENED: Rule = harmless("refusal-enum-widened");
pub(super) const FIELD_ADDED: Both = changes!("field-added");
pub(super) const FIELD_ADDED_REQUIRED: Both = narrows!("field-added-required");
/// Writers: what they send is not understood any more. Readers: what they look for is not there.
pub(super) const FIELD_REMOVED: Both = breaks!("field-removed");
pub(super) const FIELD_REQUIRED: Both = narrows!("field-became-required");
pub(super) const FIELD_OPTIONAL: Both = widens!("field-became-optional");
pub(super) const FIELD_DEPRECATED: Both = changes!("field-deprecated");
pub(super) const CONSTRAINT_TIGHTENED: Both = narrows!("constraint-tightened");
pub(super) const CONSTRAINT_LOOSENED: Both = widens!("constraint-loosened");
pub(super) const CONSTRAINT_CHANGED: Both = breaks!("constraint-changed");
/// Writers who leave it out get something else; readers are told what comes anyway.
pub(super) const DEFAULT_CHANGED: Both = narrows!("default-changed");
pub(super) const VARIANT_REMOVED: Both = narrows!("variant-removed");
pub(super) const VARIANT_ADDED: Both = widens!("variant-added");
/// Unknown fields are refused from now on, or not any more. Readers must put up with unknown fields anyway.
pub(super) const CLOSED: Both = narrows!("additional-fields-refused");
pub(super) const OPENED: Both = changes!("additional-fields-allowed");
