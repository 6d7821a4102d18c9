//! The admin API for draining targets: `POST upstreams/NAME/targets/HOST:PORT/drain`, and `undrain` to put it back. No
//! body. A drained target gets no new request; those that it has go on, and the answer says how many they are.

use super::{Answer, json_answer};
use crate::error::{GatewayError, Kind};
use crate::upstream::{Drained, Registry};
use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::json;

/// How long it holds, said with every answer.
const HOLDS: &str = "until the opposite is asked for: over reloads as long as the upstream has this target, not over a \
                     restart, and on this replica only";

/// What a path under `/admin/api/` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    upstream: String,
    target: String,
    drain: bool,
}

impl Call {
    /// Reads a whole path.
    pub(super) fn find(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix("/admin/api/upstreams/")?.split('/').collect();
        let [upstream, "targets", target, act @ ("drain" | "undrain")] = parts[..] else { return None };
        let text = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        Some(Call { upstream: text(upstream), target: text(target), drain: act == "drain" })
    }

    /// Does it for an administrator.
    pub(super) fn perform(&self, upstreams: &Registry, by: &str) -> Result<Answer, GatewayError> {
        let Call { upstream, target, drain } = self;
        let missing = |what: String| Err(GatewayError::new(Kind::NotFound, what));
        match upstreams.drain(upstream, target, *drain) {
            Drained::NoUpstream => missing(format!("there is no upstream `{upstream}`")),
            Drained::NoTarget => missing(format!(
                "upstream `{upstream}` has no target `{target}`: `GET /admin/api/upstreams` lists their addresses"
            )),
            Drained::Done(in_flight) => {
                let what = if *drain { "a target is drained" } else { "a target is put back" };
                tracing::warn!(upstream, target, in_flight, by, "{what}");
                let body = json!({
                    "upstream": upstream, "target": target, "drained": drain, "in_flight": in_flight, "holds": HOLDS,
                });
                Ok(json_answer(StatusCode::OK, &body))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_upstream_and_target() {
        let call = Call::find("/admin/api/upstreams/algo/targets/%5B::1%5D:80/drain").unwrap();
        assert_eq!((&*call.upstream, &*call.target, call.drain), ("algo", "[::1]:80", true));
        assert!(!Call::find("/admin/api/upstreams/a/targets/h:1/undrain").unwrap().drain);
        for other in
            ["/admin/api/upstreams", "/admin/api/upstreams/a/targets/h:1", "/admin/api/upstreams/a/h:1/drain"]
        {
            assert_eq!(Call::find(other), None, "{other}");
        }
    }
}
