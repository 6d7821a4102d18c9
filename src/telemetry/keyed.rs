//! Handles by name, shared while anybody holds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Hands out one handle a name, so that a table that replaces another goes on with its handles.
///
/// Asked when routes and upstreams are built and when metrics are scraped, never by a request.
pub(super) struct Keyed<T> {
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    handles: HashMap<Arc<str>, Weak<T>>,
    sweep_at: usize,
}

impl<T> Default for Keyed<T> {
    fn default() -> Self {
        Keyed { inner: Mutex::new(Inner { handles: HashMap::new(), sweep_at: 64 }) }
    }
}

impl<T> Keyed<T> {
    /// The handle of a name, made if nobody holds one.
    pub(super) fn get_or(&self, name: &str, make: impl FnOnce(Arc<str>) -> T) -> Arc<T> {
        let mut inner = self.lock();
        if let Some(handle) = inner.handles.get(name).and_then(Weak::upgrade) {
            return handle;
        }
        if inner.handles.len() >= inner.sweep_at {
            inner.handles.retain(|_, handle| handle.strong_count() > 0);
            inner.sweep_at = (inner.handles.len() * 2).max(64);
        }
        let name: Arc<str> = name.into();
        let handle = Arc::new(make(name.clone()));
        inner.handles.insert(name, Arc::downgrade(&handle));
        handle
    }

    /// Those that somebody holds.
    pub(super) fn held(&self) -> Vec<Arc<T>> {
        self.lock().handles.values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_handle_while_it_is_held() {
        let keyed = Keyed::default();
        let first = keyed.get_or("a", |_| 1);
        assert!(Arc::ptr_eq(&first, &keyed.get_or("a", |_| 2)));
        drop(first);
        assert_eq!(*keyed.get_or("a", |_| 3), 3);
    }

    #[test]
    fn names_nobody_holds_are_forgotten() {
        let keyed = Keyed::default();
        let kept = keyed.get_or("kept", |_| 0);
        for n in 0..10_000 {
            keyed.get_or(&n.to_string(), |_| n);
        }
        assert!(keyed.lock().handles.len() <= 64);
        assert_eq!(keyed.held(), [kept]);
    }
}
