//! What a chain is made of: an endpoint whose errors are finished responses.
//!
//! poem lets errors travel as `Err`, past everything further out. Here every stage and target goes through
//! [`sealed`] once, so that outer stages see an error like any other response.

use crate::error::GatewayError;
use crate::exchange::Exchange;
use futures_util::future::BoxFuture;
use poem::endpoint::{DynEndpoint, ToDynEndpoint};
use poem::{Endpoint, IntoResponse, Request, Response};
use std::future::Future;
use std::sync::Arc;

/// An endpoint whose errors are finished responses already.
#[derive(Clone)]
pub struct Next(Arc<dyn DynEndpoint<Output = Response>>);

impl Next {
    /// Answers a request. What can be done without waiting is done before this returns: no future carries the request
    /// about that was passed on already.
    pub fn call(&self, request: Request) -> BoxFuture<'_, poem::Result<Response>> {
        DynEndpoint::call(&*self.0, request)
    }

    /// Where it is: equal for two only if they are the same.
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl Endpoint for Next {
    type Output = Response;

    fn call(&self, request: Request) -> impl Future<Output = poem::Result<Response>> + Send {
        Next::call(self, request)
    }
}

/// Boxes an endpoint so that its errors are finished responses in the common form: outer stages see them like
/// any other. Every stage and target goes through here once.
pub fn sealed<E>(endpoint: E) -> Next
where
    E: Endpoint + 'static,
{
    Next(Arc::new(ToDynEndpoint(Sealed(endpoint))))
}

struct Sealed<E>(E);

impl<E: Endpoint> Endpoint for Sealed<E> {
    type Output = Response;

    fn call(&self, request: Request) -> impl Future<Output = poem::Result<Response>> + Send {
        let exchange = Exchange::of(&request).clone();
        let called = self.0.call(request);
        async move {
            Ok(match called.await {
                Ok(output) => output.into_response(),
                Err(error) if error.is_from_response() => error.into_response(),
                Err(error) => finished(&error, &exchange),
            })
        }
    }
}

/// What callers are told of an error.
fn finished(error: &poem::Error, exchange: &Exchange) -> Response {
    let ours = GatewayError::of(error);
    if ours.kind.status().is_server_error() && error.downcast_ref::<GatewayError>().is_none() {
        tracing::error!(request_id = exchange.request_id(), %error, "a handler failed");
    }
    exchange.refuse(&ours)
}
