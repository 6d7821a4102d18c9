//! What a chain is made of: an endpoint whose errors are finished responses.
//!
//! poem lets errors travel as `Err`, past everything further out. Here every stage and target goes through
//! [`sealed`] once, so that outer stages see an error like any other response.

use crate::error::GatewayError;
use crate::exchange::Exchange;
use poem::endpoint::BoxEndpoint;
use poem::{Endpoint, IntoResponse, Request, Response};

/// An endpoint whose errors are finished responses already.
pub type Next = BoxEndpoint<'static, Response>;

/// Boxes an endpoint so that its errors are finished responses in the common form: outer stages see them like
/// any other. Every stage and target goes through here once.
pub fn sealed<E>(endpoint: E) -> Next
where
    E: Endpoint + 'static,
{
    Box::new(poem::endpoint::ToDynEndpoint(Sealed(endpoint)))
}

struct Sealed<E>(E);

impl<E: Endpoint> Endpoint for Sealed<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        Ok(match self.0.call(request).await {
            Ok(output) => output.into_response(),
            Err(error) if error.is_from_response() => error.into_response(),
            Err(error) => {
                let ours = GatewayError::of(&error);
                if ours.kind.status().is_server_error() && error.downcast_ref::<GatewayError>().is_none() {
                    tracing::error!(request_id = exchange.request_id(), %error, "a handler failed");
                }
                exchange.refuse(&ours)
            }
        })
    }
}
