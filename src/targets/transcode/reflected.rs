//! A route whose method is known once the server has told its descriptors.

use crate::error::{GatewayError, Kind};
use crate::grpc::{Call, Wanted};
use crate::upstream::Upstream;
use arc_swap::ArcSwapOption;
use prost_reflect::DescriptorPool;
use std::sync::Arc;

/// Binds itself when descriptors have come, and again when they have changed.
pub(super) struct Reflected {
    wanted: Wanted,
    /// Whether the route says that it streams.
    streams: bool,
    bound: ArcSwapOption<Bound>,
}

struct Bound {
    to: Arc<DescriptorPool>,
    call: Option<Arc<Call>>,
}

impl Reflected {
    pub(super) fn new(wanted: Wanted, streams: bool) -> Self {
        Reflected { wanted, streams, bound: ArcSwapOption::empty() }
    }

    /// The method by the newest descriptors.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] while there are none, or where they do not have what the route wants; the log says why.
    pub(super) fn call(&self, upstream: &Upstream) -> Result<Arc<Call>, GatewayError> {
        let pool = upstream.reflected().ok_or(Kind::Unavailable)?;
        let known = self.bound.load();
        if let Some(bound) = known.as_ref()
            && Arc::ptr_eq(&bound.to, &pool)
        {
            return bound.call.clone().ok_or_else(|| Kind::Unavailable.into());
        }
        let call = self.bind(&pool, upstream);
        self.bound.store(Some(Arc::new(Bound { to: pool, call: call.clone() })));
        call.ok_or_else(|| Kind::Unavailable.into())
    }

    fn bind(&self, pool: &DescriptorPool, upstream: &Upstream) -> Option<Arc<Call>> {
        let say = |message: &str, help: Option<&str>| {
            tracing::error!(
                upstream = &**upstream.spec().name(),
                method = self.wanted.method,
                help,
                "a route does not fit what the server's reflection says: {message}"
            );
        };
        match Call::bind(pool, &self.wanted) {
            Ok(call) if call.gives_stream() != self.streams => {
                let message = match self.streams {
                    true => "the route has `stream` or `bridge`, the method answers with one message",
                    false => "the method answers with a stream, the route does not say so",
                };
                say(
                    message,
                    Some(
                        "with reflection, routes of streaming methods have `stream: {}` or a `bridge`, and no others",
                    ),
                );
                None
            }
            Ok(call) => Some(Arc::new(call)),
            Err(problems) => {
                problems.iter().for_each(|problem| say(&problem.message, problem.help.as_deref()));
                None
            }
        }
    }
}
