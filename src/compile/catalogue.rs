//! Where callers can read what an error code means: beside the documentation, if the manifest serves it.

use crate::check::Checked;
use crate::check::documentation::serves_docs;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Path of the catalogue up to a code, `/docs/errors#`. Only of a page that every caller can reach by path alone: any host,
/// no parameters, no predicates.
pub(super) fn place(checked: &Checked) -> Option<&'static str> {
    let plain = |template: &str| !template.contains([':', '*']);
    let home = checked.routes().iter().find(|route| {
        serves_docs(route)
            && plain(&route.info.template)
            && route.host.is_none()
            && route.predicates.headers.is_empty()
            && route.predicates.query.is_empty()
    })?;
    Some(kept(format!("{}/errors#", home.info.template.trim_end_matches('/'))))
}

/// The text for as long as the process runs. Every request refers to it, and none shall count references; a process sees
/// as many of them as an operator moves the documentation to new places.
fn kept(text: String) -> &'static str {
    static ALL: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    match all.get(text.as_str()) {
        Some(known) => known,
        None => {
            let kept: &'static str = Box::leak(text.into_boxed_str());
            all.insert(kept);
            kept
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once() {
        let one = kept("/docs/errors#".to_owned());
        assert!(std::ptr::eq(one, kept("/docs/errors#".to_owned())));
        assert_ne!(one, kept("/api/docs/errors#".to_owned()));
    }
}
