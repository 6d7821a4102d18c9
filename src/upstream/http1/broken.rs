//! What went wrong with a request or its answer, and what is left of the request then.

use crate::upstream::body::RequestBody;
use http::Request;
use std::fmt;
use std::io;

/// Why there is no answer, or not all of it.
#[derive(Debug)]
pub(in crate::upstream) enum Broken {
    /// The socket failed, or what was to be sent.
    Io(io::Error),
    /// The server closed the connection too early.
    Closed(&'static str),
    /// What the server said is no HTTP.
    Parse(&'static str),
}

/// A request without an answer.
pub(in crate::upstream) struct Failed {
    pub(in crate::upstream) why: Broken,
    pub(in crate::upstream) request: Returned,
}

/// What comes back of a request without an answer.
pub(in crate::upstream) enum Returned {
    /// All of it: nothing has left.
    Unsent(Box<Request<RequestBody>>),
    /// All of it, but it may have arrived. It has no body.
    Sent(Box<Request<RequestBody>>),
    /// Nothing: its body is gone.
    Nothing,
}

impl Broken {
    /// Whether the server said what is no HTTP.
    pub(in crate::upstream) fn is_parse(&self) -> bool {
        matches!(self, Broken::Parse(_))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Io(error) => write!(f, "{error}"),
            Broken::Closed(what) => f.write_str(what),
            Broken::Parse(what) => write!(f, "bad response: {what}"),
        }
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Broken::Io(error) => error.source(),
            _ => None,
        }
    }
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Io(error) => error,
            Broken::Closed(_) => io::Error::new(io::ErrorKind::UnexpectedEof, broken),
            Broken::Parse(_) => io::Error::new(io::ErrorKind::InvalidData, broken),
        }
    }
}
