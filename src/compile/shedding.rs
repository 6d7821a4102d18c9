//! How important a route is to the process, and what its callers get while there is too much to do.

use super::{Refused, layers, sees_closed};
use crate::check::routes::{CheckedRoute, Ending};
use crate::endpoint::{Next, sealed};
use crate::error::{GatewayError, Kind};
use crate::shed::Rank;
use crate::stages::fold;
use crate::state::Shared;
use poem::{Request, Response};
use std::sync::Arc;

/// Operations that are asked whether the process is well: they answer whatever it has to do.
const VITAL: [&str; 4] = ["gateway.health", "gateway.ready", "gateway.live", "gateway.metrics"];

/// How important a route is.
pub(super) fn rank(route: &CheckedRoute) -> Rank {
    if let Ending::Native(native) = &route.ending
        && VITAL.contains(&native.operation.name)
    {
        return Rank::VITAL;
    }
    let stages = route.links.iter().filter_map(|link| link.stage.as_ref());
    let priority = stages.filter_map(|stage| stage.facts().priority).next_back();
    Rank::of(priority.unwrap_or_default(), route.streams() || route.ending.is_socket())
}

/// Answers a request with the error that comes with it: logged, counted, and readable by websites like the route's
/// other answers.
pub(super) fn refusing(route: &CheckedRoute, shared: &Arc<Shared>) -> Next {
    let answer = poem::endpoint::make_sync(|request: Request| -> poem::Result<Response> {
        let error = request.data::<Refused>().map_or(Kind::Overloaded.into(), |refused| refused.0.clone());
        Err(GatewayError::into(error))
    });
    fold(layers(route, shared, sees_closed), sealed(answer))
}
