//! What a copy is found by.

use http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};

/// Says for which request an answer is: 256 bits of SHA-256 over everything that makes requests different, so that
/// nobody can choose a path or a query that reads as another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// Takes what makes requests different, part by part.
#[derive(Clone)]
pub struct KeyMaker(Sha256);

impl Key {
    /// Begins a key. `kind` tells keys of one user of the store from another's, `identity` is the route's: changed, its
    /// copies are others.
    pub fn of(kind: &'static str, identity: u64) -> KeyMaker {
        KeyMaker(Sha256::new()).with(kind.as_bytes()).with(&identity.to_le_bytes())
    }

    /// The key of one variant: what these headers say in a request. Values of a name that stands more than once are
    /// told apart by their number and order.
    pub fn variant(&self, names: &[HeaderName], request: &HeaderMap) -> Key {
        let mut maker = KeyMaker(Sha256::new()).with(b"variant").with(&self.0);
        for name in names {
            let values = request.get_all(name);
            maker.add(&(values.iter().count() as u64).to_le_bytes());
            values.iter().for_each(|value| maker.add(value.as_bytes().trim_ascii()));
        }
        maker.end()
    }
}

impl KeyMaker {
    /// Takes a part. Parts end where they say: two never read as one.
    #[must_use]
    pub fn with(mut self, part: &[u8]) -> Self {
        self.add(part);
        self
    }

    /// Takes a part that may be missing, which is not the same as empty.
    #[must_use]
    pub fn maybe(self, part: Option<&[u8]>) -> Self {
        match part {
            Some(part) => self.with(&[1]).with(part),
            None => self.with(&[0]),
        }
    }

    /// The key.
    pub fn end(self) -> Key {
        Key(self.0.finalize().into())
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }
}
