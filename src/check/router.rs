//! The index of the routing table: host, then path, then method and predicates.
//!
//! A tree of segments: a lookup costs what the path is long, however many routes there are. Static segments beat
//! `:param`, which beats `*rest`; where the more special place has no route for the method or the predicates, the
//! search goes on to the more general one, except past a native operation: a catch-all never takes over a path of
//! the gateway's own (SECURITY rule 25).

use super::pattern::{Host, MethodSet, Pattern, Predicates, Segment};
use http::{HeaderMap, HeaderValue, Method};
use std::collections::HashMap;

/// An index from requests to values.
#[derive(Debug)]
pub struct Router<T> {
    exact: HashMap<String, Tree<T>>,
    /// Longest first.
    suffixes: Vec<(String, Tree<T>)>,
    any: Tree<T>,
}

/// Where a value goes.
#[derive(Debug)]
pub struct Place<'a> {
    /// Host, if not any.
    pub host: Option<&'a Host>,
    /// Methods.
    pub method: &'a MethodSet,
    /// Path.
    pub pattern: &'a Pattern,
    /// Predicates.
    pub predicates: &'a Predicates,
    /// Whether it is an operation of the gateway itself.
    pub native: bool,
}

/// What a lookup brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'t, T> {
    /// A value, and the ranges of the path that its parameters take.
    Route(&'t T, Vec<(u32, u32)>),
    /// The path is known, this method is not; value of `Allow`.
    NotAllowed(HeaderValue),
    /// Nothing.
    Nothing,
}

/// The part of a request that routing looks at.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Host, lower case, without port.
    pub host: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Normalised path.
    pub path: &'a str,
    /// Headers, for predicates.
    pub headers: &'a HeaderMap,
    /// Query, for predicates.
    pub query: Option<&'a str>,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Router { exact: HashMap::new(), suffixes: Vec::new(), any: Tree::default() }
    }
}

impl<T> Router<T> {
    /// Adds a value. That no two can't be told apart was proven by the checks.
    pub fn insert(&mut self, place: &Place<'_>, value: T) {
        let tree = match place.host {
            None => &mut self.any,
            Some(Host::Exact(name)) => self.exact.entry(name.clone()).or_default(),
            Some(Host::Suffix(suffix)) => {
                let at = match self.suffixes.iter().position(|(known, _)| known == suffix) {
                    Some(at) => at,
                    None => {
                        let at = self.suffixes.partition_point(|(known, _)| known.len() >= suffix.len());
                        self.suffixes.insert(at, (suffix.clone(), Tree::default()));
                        at
                    }
                };
                &mut self.suffixes[at].1
            }
        };
        tree.insert(place, value);
    }

    /// The value for a request. A host's own routes are asked first, then those for any host.
    pub fn find<'t>(&'t self, asked: &Asked<'_>) -> Found<'t, T> {
        let mut allowed = Allowed::default();
        let mut ranges = Vec::new();
        for tree in self.trees(asked.host) {
            let mut search = Search { tree, asked, ranges: &mut ranges, allowed: &mut allowed };
            match search.node(0, 1) {
                Step::Found(value) => return Found::Route(value, ranges),
                Step::Stop => break,
                Step::Go => ranges.clear(),
            }
        }
        allowed.answer()
    }

    /// Methods that a path serves, as a value of `Allow`; none if the path is unknown.
    pub fn allow(&self, host: &str, path: &str) -> Option<HeaderValue> {
        // No route takes this method, so the search visits every place that matches the path.
        let method = Method::from_bytes(b"-").ok()?;
        let headers = HeaderMap::new();
        match self.find(&Asked { host, method: &method, path, headers: &headers, query: None }) {
            Found::NotAllowed(allow) => Some(allow),
            Found::Route(..) => {
                Some(HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
            }
            Found::Nothing => None,
        }
    }

    /// From the narrowest to the widest.
    fn trees<'t, 'h>(&'t self, host: &'h str) -> impl Iterator<Item = &'t Tree<T>> + use<'t, 'h, T> {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        let suffixes = self
            .suffixes
            .iter()
            .filter(move |(suffix, _)| host.len() > suffix.len() && host.ends_with(suffix));
        exact.into_iter().chain(suffixes.map(|(_, tree)| tree)).chain(std::iter::once(&self.any))
    }
}

#[derive(Debug)]
struct Tree<T> {
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    fixed: Children,
    param: Option<u32>,
    /// Routes that end here.
    here: Vec<Leaf<T>>,
    /// Routes that take the rest from here.
    rest: Vec<Leaf<T>>,
}

#[derive(Debug)]
struct Leaf<T> {
    method: MethodSet,
    predicates: Predicates,
    native: bool,
    value: T,
}

/// Static children: a short list is scanned, a long one hashed.
#[derive(Debug)]
enum Children {
    Few(Vec<(Box<str>, u32)>),
    Many(HashMap<Box<str>, u32>),
}

const FEW: usize = 8;

impl Children {
    fn get(&self, name: &str) -> Option<u32> {
        match self {
            Children::Few(list) => list.iter().find(|(known, _)| &**known == name).map(|(_, at)| *at),
            Children::Many(map) => map.get(name).copied(),
        }
    }

    fn insert(&mut self, name: &str, at: u32) {
        match self {
            Children::Few(list) if list.len() < FEW => list.push((name.into(), at)),
            Children::Few(list) => {
                let mut map: HashMap<_, _> = std::mem::take(list).into_iter().collect();
                map.insert(name.into(), at);
                *self = Children::Many(map);
            }
            Children::Many(map) => {
                map.insert(name.into(), at);
            }
        }
    }
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Tree { nodes: vec![Node::default()] }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Node { fixed: Children::Few(Vec::new()), param: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Tree<T> {
    fn insert(&mut self, place: &Place<'_>, value: T) {
        let mut at = 0usize;
        let mut rest = false;
        for segment in &place.pattern.segments {
            let fresh = self.nodes.len() as u32;
            let next = match segment {
                Segment::Static(text) => match self.nodes[at].fixed.get(text) {
                    Some(known) => known,
                    None => {
                        self.nodes[at].fixed.insert(text, fresh);
                        fresh
                    }
                },
                Segment::Param(_) => *self.nodes[at].param.get_or_insert(fresh),
                Segment::Rest(_) => {
                    rest = true;
                    break;
                }
            };
            if next == fresh {
                self.nodes.push(Node::default());
            }
            at = next as usize;
        }
        let leaves = if rest { &mut self.nodes[at].rest } else { &mut self.nodes[at].here };
        let leaf = Leaf {
            method: place.method.clone(),
            predicates: place.predicates.clone(),
            native: place.native,
            value,
        };
        // Narrow predicates first, then single methods before ANY; equals in the order of the manifest.
        let rank = |leaf: &Leaf<T>| (usize::MAX - leaf.predicates.weight(), leaf.method == MethodSet::Any);
        let behind = leaves.partition_point(|known| rank(known) <= rank(&leaf));
        leaves.insert(behind, leaf);
    }
}

struct Search<'s, 't, T> {
    tree: &'t Tree<T>,
    asked: &'s Asked<'s>,
    ranges: &'s mut Vec<(u32, u32)>,
    allowed: &'s mut Allowed,
}

enum Step<'t, T> {
    Found(&'t T),
    /// Nothing here; a more general place may have it.
    Go,
    /// Nothing, and nobody else may take it.
    Stop,
}

impl<'t, T> Search<'_, 't, T> {
    /// Searches below a node; `at` is the offset behind the slash before the next segment.
    fn node(&mut self, node: u32, at: usize) -> Step<'t, T> {
        let node = &self.tree.nodes[node as usize];
        let path = self.asked.path;
        // Behind the last segment there is no slash left: the offset is one past the end.
        if at > path.len() || (at == path.len() && at == 1) {
            let step = self.leaves(&node.here);
            if at > path.len() || !matches!(step, Step::Go) {
                return step;
            }
        }
        if at <= path.len() {
            let end = path[at..].find('/').map_or(path.len(), |length| at + length);
            let segment = &path[at..end];
            if let Some(child) = node.fixed.get(segment) {
                match self.node(child, end + 1) {
                    Step::Go => {}
                    done => return done,
                }
            }
            if let Some(child) = node.param
                && !segment.is_empty()
            {
                self.ranges.push((at as u32, end as u32));
                match self.node(child, end + 1) {
                    Step::Go => {
                        self.ranges.pop();
                    }
                    done => return done,
                }
            }
            if !node.rest.is_empty() {
                self.ranges.push((at as u32, path.len() as u32));
                match self.leaves(&node.rest) {
                    Step::Go => {
                        self.ranges.pop();
                    }
                    done => return done,
                }
            }
        }
        Step::Go
    }

    fn leaves(&mut self, leaves: &'t [Leaf<T>]) -> Step<'t, T> {
        let method = self.asked.method;
        let takes = |leaf: &Leaf<T>, method: &Method| match &leaf.method {
            MethodSet::Any => true,
            MethodSet::One(one) => one == method,
        };
        let holds = |leaf: &&'t Leaf<T>| leaf.predicates.hold(self.asked.headers, self.asked.query);
        let found = match *method {
            // HEAD follows GET: whoever answers that one, unless a route is for HEAD itself.
            Method::HEAD => leaves
                .iter()
                .filter(|leaf| matches!(&leaf.method, MethodSet::One(one) if one == method))
                .find(holds)
                .or_else(|| leaves.iter().filter(|leaf| takes(leaf, &Method::GET)).find(holds)),
            _ => leaves.iter().filter(|leaf| takes(leaf, method)).find(holds),
        };
        if let Some(leaf) = found {
            return Step::Found(&leaf.value);
        }
        let mut native = false;
        for leaf in leaves.iter().filter(holds) {
            self.allowed.add(&leaf.method);
            native |= leaf.native;
        }
        if native { Step::Stop } else { Step::Go }
    }
}

/// Methods that would have been taken.
#[derive(Debug, Default)]
struct Allowed(Vec<String>);

impl Allowed {
    fn add(&mut self, method: &MethodSet) {
        let mut push = |name: &str| {
            if !self.0.iter().any(|known| known == name) {
                self.0.push(name.to_owned());
            }
        };
        push(method.as_str());
        if *method == MethodSet::One(Method::GET) {
            push("HEAD");
        }
    }

    fn answer<'t, T>(mut self) -> Found<'t, T> {
        if self.0.is_empty() {
            return Found::Nothing;
        }
        if !self.0.iter().any(|known| known == "OPTIONS") {
            self.0.push("OPTIONS".to_owned());
        }
        HeaderValue::from_str(&self.0.join(", ")).map_or(Found::Nothing, Found::NotAllowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::pattern;
    use crate::diag::{Diagnostics, FileId, Span};
    use crate::manifest::Spanned;

    fn table(routes: &[&str]) -> Router<String> {
        let mut router = Router::default();
        for text in routes {
            let (route, host) = text.split_once(" @").map_or((*text, None), |(r, h)| (r, Some(h)));
            let (route, native) = route.strip_suffix(" !").map_or((route, false), |r| (r, true));
            let mut out = Diagnostics::new();
            let spanned =
                |text: &str| Spanned { value: text.to_owned(), span: Span::new(FileId(0), 0, text.len()) };
            let (method, pattern) = pattern::route(&spanned(route), "", &mut out).unwrap();
            let host = host.map(|h| pattern::host(&spanned(h), &mut out).unwrap());
            let predicates = Predicates::default();
            let place = Place {
                host: host.as_ref(),
                method: &method,
                pattern: &pattern,
                predicates: &predicates,
                native,
            };
            router.insert(&place, (*text).to_owned());
        }
        router
    }

    fn ask(router: &Router<String>, host: &str, method: &str, path: &str) -> String {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        match router.find(&Asked { host, method: &method, path, headers: &HeaderMap::new(), query: None }) {
            Found::Route(value, ranges) => {
                let params: Vec<_> = ranges.iter().map(|(a, b)| &path[*a as usize..*b as usize]).collect();
                format!("{value} [{}]", params.join("|"))
            }
            Found::NotAllowed(allow) => format!("405 {}", allow.to_str().unwrap()),
            Found::Nothing => "404".to_owned(),
        }
    }

    #[test]
    fn static_beats_param_beats_rest() {
        let router = table(&["GET /s/new", "GET /s/:id", "GET /s/*all", "GET /s/:id/m/:mid", "GET /"]);
        assert_eq!(ask(&router, "h", "GET", "/s/new"), "GET /s/new []");
        assert_eq!(ask(&router, "h", "GET", "/s/old"), "GET /s/:id [old]");
        assert_eq!(ask(&router, "h", "GET", "/s/old/m/7"), "GET /s/:id/m/:mid [old|7]");
        assert_eq!(ask(&router, "h", "GET", "/s/new/m/7"), "GET /s/:id/m/:mid [new|7]", "backtracks");
        assert_eq!(ask(&router, "h", "GET", "/s/old/x"), "GET /s/*all [old/x]");
        assert_eq!(ask(&router, "h", "GET", "/s/"), "GET /s/*all []");
        assert_eq!(ask(&router, "h", "GET", "/s"), "404");
        assert_eq!(ask(&router, "h", "GET", "/"), "GET / []");
        assert_eq!(ask(&router, "h", "GET", "/t"), "404");
    }

    #[test]
    fn trailing_slashes_are_their_own_paths() {
        let router = table(&["GET /a", "GET /b/"]);
        assert_eq!(ask(&router, "h", "GET", "/a/"), "404");
        assert_eq!(ask(&router, "h", "GET", "/b/"), "GET /b/ []");
        assert_eq!(ask(&router, "h", "GET", "/b"), "404");
    }

    #[test]
    fn methods_fall_back_and_say_what_is_allowed() {
        let router = table(&["GET /a/:id", "POST /a/*rest", "ANY /b", "PUT /b"]);
        assert_eq!(ask(&router, "h", "HEAD", "/a/1"), "GET /a/:id [1]");
        assert_eq!(ask(&router, "h", "POST", "/a/1"), "POST /a/*rest [1]");
        assert_eq!(ask(&router, "h", "DELETE", "/a/1"), "405 GET, HEAD, POST, OPTIONS");
        assert_eq!(ask(&router, "h", "DELETE", "/b"), "ANY /b []");
        assert_eq!(ask(&router, "h", "PUT", "/b"), "PUT /b []");
        let router = table(&["ANY /c", "GET /c", "ANY /d", "GET /d", "HEAD /d"]);
        assert_eq!(ask(&router, "h", "HEAD", "/c"), "GET /c []", "HEAD follows GET, not ANY");
        assert_eq!(ask(&router, "h", "HEAD", "/d"), "HEAD /d []");
    }

    #[test]
    fn a_catch_all_never_takes_native_paths() {
        let router = table(&["GET /health !", "ANY /*path"]);
        assert_eq!(ask(&router, "h", "POST", "/health"), "405 GET, HEAD, OPTIONS");
        assert_eq!(ask(&router, "h", "POST", "/healthy"), "ANY /*path [healthy]");
        assert_eq!(ask(&router, "h", "GET", "/"), "ANY /*path []");
    }

    #[test]
    fn hosts_are_exact_then_suffix_then_any() {
        let router = table(&["GET /a", "GET /a @api.x.com", "GET /a @*.x.com", "GET /b @*.x.com"]);
        assert_eq!(ask(&router, "api.x.com", "GET", "/a"), "GET /a @api.x.com []");
        assert_eq!(ask(&router, "www.x.com", "GET", "/a"), "GET /a @*.x.com []");
        assert_eq!(ask(&router, "x.com", "GET", "/a"), "GET /a []");
        assert_eq!(ask(&router, "api.x.com", "GET", "/b"), "GET /b @*.x.com []");
        assert_eq!(ask(&router, "other", "GET", "/b"), "404");
        let router = table(&["GET /a @*.b.x.com", "GET /c @*.x.com"]);
        assert_eq!(ask(&router, "a.b.x.com", "GET", "/c"), "GET /c @*.x.com []", "wider suffixes too");
    }

    #[test]
    fn many_static_children_are_found() {
        let routes: Vec<String> = (0..100).map(|i| format!("GET /r{i}/x")).collect();
        let router = table(&routes.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ask(&router, "h", "GET", "/r57/x"), "GET /r57/x []");
        assert_eq!(ask(&router, "h", "GET", "/r100/x"), "404");
    }
}
