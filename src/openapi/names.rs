//! Names of a path's parameters: an upstream's description has its own, and the route decides what they are called here.
//!
//! They are told by their positions: where the path that goes upstream ends like the description's (its `servers` may put
//! something before it), its `{thing_id}` is whatever the route has put there. What the shapes do not tell keeps its name,
//! which must then be one of the route's.

use crate::manifest::documents::parts;
use percent_encoding::percent_decode_str;

/// What the parameters of an operation's path are called by the route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathNames {
    /// The operation's own path, `/things/{thing_id}`, if it stands under `paths`.
    pub theirs: Option<String>,
    /// Its names, and the route's.
    pairs: Vec<(String, String)>,
}

impl PathNames {
    /// `reference` names the operation; `upstream` is the path that goes upstream, its parameters as `{name}`.
    pub fn of(reference: &str, upstream: &str) -> Self {
        let Some(theirs) = path_of(reference) else { return PathNames::default() };
        let (own, ours) = (segments(&theirs), segments(upstream));
        let beginning = ours.len().checked_sub(own.len());
        let tail = beginning.and_then(|at| ours.get(at..)).unwrap_or_default();
        let alike =
            beginning.is_some() && own.iter().zip(tail).all(|((shape, _), (other, _))| shape == other);
        let pairs = match alike {
            true => {
                let names = |all: &[(String, Vec<String>)]| -> Vec<String> {
                    all.iter().flat_map(|(_, names)| names.clone()).collect()
                };
                names(&own).into_iter().zip(names(tail)).collect()
            }
            false => Vec::new(),
        };
        PathNames { theirs: Some(theirs), pairs }
    }

    /// The route's name for one of the operation's.
    pub fn ours<'n>(&'n self, theirs: &'n str) -> &'n str {
        let known = self.pairs.iter().find(|(name, _)| name == theirs);
        known.map_or(theirs, |(_, name)| name.as_str())
    }
}

/// `/things/{id}` of `file.yaml#/paths/~1things~1%7Bid%7D/get`.
fn path_of(reference: &str) -> Option<String> {
    let (_, pointer) = parts(reference);
    let pointer = percent_decode_str(pointer).decode_utf8_lossy();
    let (path, _) = pointer.strip_prefix("/paths/")?.rsplit_once('/')?;
    Some(path.replace("~1", "/").replace("~0", "~"))
}

/// The segments of a path: each as its shape, `{}.json`, and its names.
fn segments(path: &str) -> Vec<(String, Vec<String>)> {
    let one = |segment: &str| {
        let (mut shape, mut names) = (String::new(), Vec::new());
        let mut rest = segment;
        while let Some((before, (name, after))) =
            rest.split_once('{').and_then(|(before, after)| Some((before, after.split_once('}')?)))
        {
            shape.push_str(before);
            shape.push_str("{}");
            names.push(name.to_owned());
            rest = after;
        }
        shape.push_str(rest);
        (shape, names)
    };
    path.split('/').filter(|segment| !segment.is_empty()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(reference: &str, upstream: &str, name: &str) -> String {
        PathNames::of(reference, upstream).ours(name).to_owned()
    }

    #[test]
    fn names_are_told_by_their_positions() {
        let reference = "api.yaml#/paths/~1things~1%7Bthing_id%7D~1parts~1%7Bpart%7D.json/get";
        let names = PathNames::of(reference, "/v2/{tenant}/things/{id}/parts/{n}.json");
        assert_eq!(names.theirs.as_deref(), Some("/things/{thing_id}/parts/{part}.json"));
        assert_eq!((names.ours("thing_id"), names.ours("part")), ("id", "n"));
        // Two that only changed places change names.
        let reference = "api.yaml#/paths/~1{a}~1{b}/get";
        assert_eq!(ours(reference, "/{b}/{a}", "a"), "b");
    }

    #[test]
    fn paths_of_another_shape_tell_nothing() {
        let reference = "api.yaml#/paths/~1things~1{thing_id}/get";
        for upstream in ["/others/{id}", "/things/{id}/parts", "/{id}", "/things/all", ""] {
            assert_eq!(ours(reference, upstream, "thing_id"), "thing_id", "{upstream}");
        }
        assert_eq!(PathNames::of("api.yaml#/components/x/get", "/things/{id}").theirs, None);
    }
}
