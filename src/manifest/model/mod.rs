//! What a manifest file may say: one typed, documented structure a section.
//!
//! These are the keys of the contract, as typed; nothing is resolved here. Stage bodies stay trees
//! ([`StageUse`]), because the stages themselves decode them.

mod access;
mod fallback;
mod load;
mod outlier;
mod route;
mod upstream;

pub use access::*;
pub use fallback::*;
pub use load::*;
pub use outlier::*;
pub use route::*;
pub use upstream::*;

use super::{List, Spanned, Table};
use schemars::JsonSchema;
use serde::Deserialize;

/// One manifest file: `routes.yaml`, or a file it includes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Format of the file; this gateway reads `1`. The root file must have it.
    pub version: Option<Spanned<u32>>,
    /// Title, version and servers of the API, for `/health` and the documentation.
    pub info: Option<Spanned<Info>>,
    /// Files whose sections belong to this manifest: globs, relative to this file.
    #[serde(default)]
    pub include: List<String>,
    /// Named sets of servers behind the gateway.
    #[serde(default)]
    pub upstreams: Table<Upstream>,
    /// Tokens, passwords, lockout and other issuers.
    pub auth: Option<Spanned<Auth>>,
    /// Named rate-limit policies.
    #[serde(default)]
    pub rate_limits: Table<RateLimit>,
    /// Roles and what they may do.
    #[serde(default)]
    pub roles: Table<Role>,
    /// Named CORS policies.
    #[serde(default)]
    pub cors: Table<Cors>,
    /// Named lists of stages; the first stage is outermost.
    #[serde(default)]
    pub chains: Table<List<StageUse>>,
    /// Groups of routes under a prefix.
    #[serde(default)]
    pub versions: List<Version>,
    /// Routes outside any version.
    #[serde(default)]
    pub routes: List<Route>,
    /// Requests with their expected outcome; they gate check and reload.
    #[serde(default)]
    pub tests: List<RouteTest>,
}

/// The API's own description.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// Name of the API.
    pub title: String,
    /// Version of the API, shown by `/health`.
    pub version: String,
    /// A few sentences (CommonMark).
    pub description: Option<String>,
    /// Public addresses of the gateway.
    #[serde(default)]
    pub servers: List<Server>,
}

/// A public address of the gateway.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// URL as callers see it.
    pub url: String,
    /// What it is for.
    pub description: Option<String>,
}
