//! The index of the routing table: host, then path, then method and predicates.
//!
//! A tree of segments: a lookup costs what the path is long, however many routes there are. Static segments beat
//! `:param`, which beats `*rest`; where the more special place has no route for the method or the predicates, the
//! search goes on to the more general one, except past a native operation: a catch-all never takes over a path of
//! the gateway's own (SECURITY rule 25).
//!
//! With ten thousand routes asked in turn, what counts is how much memory a lookup touches, since none of it is near.
//! So segments without a fork between them are one node, a node with its value and all that decides whether
//! it is taken is two neighbouring lines of cache, and a perfect hash leads from one to the next.

use super::pattern::{Host, MethodSet, Pattern, Predicates, Segment};
use foldhash::fast::FixedState;
use http::{HeaderMap, HeaderValue, Method};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};

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

impl<'p, T> FromIterator<(Place<'p>, T)> for Router<T> {
    /// An index of these values. That no two can't be told apart was proven by the checks.
    fn from_iter<I: IntoIterator<Item = (Place<'p>, T)>>(values: I) -> Self {
        let mut any = Plan::default();
        let mut exact: HashMap<&str, Plan<T>> = HashMap::new();
        let mut suffixes: BTreeMap<&str, Plan<T>> = BTreeMap::new();
        for (place, value) in values {
            let plan = match place.host {
                None => &mut any,
                Some(Host::Exact(name)) => exact.entry(name).or_default(),
                Some(Host::Suffix(suffix)) => suffixes.entry(suffix).or_default(),
            };
            plan.insert(&place, value);
        }
        let mut suffixes: Vec<_> =
            suffixes.into_iter().map(|(name, plan)| (name.to_owned(), Tree::of(plan))).collect();
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Router {
            exact: exact.into_iter().map(|(name, plan)| (name.to_owned(), Tree::of(plan))).collect(),
            suffixes,
            any: Tree::of(any),
        }
    }
}

impl<T> Router<T> {
    /// The value for a request. A host's own routes are asked first, then those for any host.
    pub fn find<'t>(&'t self, asked: &Asked<'_>) -> Found<'t, T> {
        let mut allowed = Allowed::default();
        let mut ranges = Vec::new();
        for tree in self.trees(asked.host) {
            let mut search = Search { tree, asked, ranges: &mut ranges, allowed: &mut allowed };
            match search.node(ROOT, 1) {
                Step::Found(value) => return Found::Route(value, ranges),
                Step::Stop => break,
                Step::Go => ranges.clear(),
            }
        }
        allowed.answer()
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

/// A tree while values come in: one node a segment.
#[derive(Debug)]
struct Plan<T> {
    nodes: Vec<Fork<T>>,
}

#[derive(Debug)]
struct Fork<T> {
    fixed: BTreeMap<String, usize>,
    param: Option<usize>,
    /// Routes that end here.
    here: Vec<Leaf<T>>,
    /// Routes that take the rest from here.
    rest: Vec<Leaf<T>>,
}

impl<T> Default for Fork<T> {
    fn default() -> Self {
        Fork { fixed: BTreeMap::new(), param: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Fork<T> {
    /// Its child, if it is nothing but the way there.
    fn only(&self) -> Option<(&str, usize)> {
        if !self.here.is_empty() || !self.rest.is_empty() {
            return None;
        }
        let mut fixed = self.fixed.iter();
        match (self.param, fixed.next(), fixed.next()) {
            (Some(child), None, None) => Some((PARAM, child)),
            (None, Some((name, child)), None) => Some((name, *child)),
            _ => None,
        }
    }
}

impl<T> Default for Plan<T> {
    fn default() -> Self {
        Plan { nodes: vec![Fork::default()] }
    }
}

impl<T> Plan<T> {
    fn insert(&mut self, place: &Place<'_>, value: T) {
        let mut at = 0;
        let mut rest = false;
        for segment in &place.pattern.segments {
            let fresh = self.nodes.len();
            let next = match segment {
                Segment::Static(text) => match self.nodes[at].fixed.get(text) {
                    Some(known) => *known,
                    None => {
                        self.nodes[at].fixed.insert(text.clone(), fresh);
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
                self.nodes.push(Fork::default());
            }
            at = next;
        }
        let leaves = if rest { &mut self.nodes[at].rest } else { &mut self.nodes[at].here };
        let leaf = Leaf {
            value,
            takes: Methods::of(place.method),
            native: place.native,
            predicates: (place.predicates.weight() > 0).then(|| Box::new(place.predicates.clone())),
        };
        // Narrow predicates first, then single methods before ANY; equals in the order of the manifest.
        let weight = |leaf: &Leaf<T>| leaf.predicates.as_ref().map_or(0, |predicates| predicates.weight());
        let rank = |leaf: &Leaf<T>| (usize::MAX - weight(leaf), leaf.takes == Methods::ANY);
        let behind = leaves.partition_point(|known| rank(known) <= rank(&leaf));
        leaves.insert(behind, leaf);
    }
}

/// A tree that is asked.
#[derive(Debug)]
struct Tree<T> {
    nodes: Vec<Node<T>>,
    leaves: Vec<Leaf<T>>,
    edges: Edges,
    /// Labels that are too long for their nodes.
    labels: Vec<u8>,
}

/// Where several ways part, or routes end.
#[derive(Debug)]
#[repr(align(128))]
struct Node<T> {
    label: Label,
    /// The fork before it.
    from: u32,
    /// Whether some child begins with a static segment.
    forks: bool,
    /// The child that begins with a parameter, or [`NONE`].
    param: u32,
    /// The first route that ends here: mostly the only one.
    first: Option<Leaf<T>>,
    /// The others that do.
    here: (u32, u32),
    /// Routes that take the rest from here.
    rest: (u32, u32),
}

/// A value, and what decides whether a request is its.
#[derive(Debug)]
struct Leaf<T> {
    value: T,
    predicates: Option<Box<Predicates>>,
    takes: Methods,
    native: bool,
}

const ROOT: u32 = 0;

/// No node. There are fewer than that many: a manifest is read up to a size.
const NONE: u32 = u32::MAX;

/// The segments that lead to a node from the fork before it, with slashes between them and [`PARAM`] for each that is a
/// parameter.
#[derive(Debug)]
enum Label {
    Short(u8, [u8; SHORT]),
    /// A range of [`Tree::labels`].
    Long(u32, u32),
}

/// As much as lets a node be two lines of cache.
const SHORT: usize = 30;

const _: () = assert!(size_of::<Node<[usize; 6]>>() == 128, "two lines of cache, with a value of 48 bytes");

/// Stands for a parameter. It is in no path, and no static segment's normal form.
const PARAM: &str = "\0";

impl Label {
    fn of(text: &str, long: &mut Vec<u8>) -> Self {
        let mut short = [0; SHORT];
        match (short.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(part), Ok(length)) => {
                part.copy_from_slice(text.as_bytes());
                Label::Short(length, short)
            }
            _ => {
                let from = long.len() as u32;
                long.extend_from_slice(text.as_bytes());
                Label::Long(from, long.len() as u32)
            }
        }
    }

    fn text<'t>(&'t self, long: &'t [u8]) -> &'t [u8] {
        match self {
            Label::Short(length, text) => &text[..usize::from(*length)],
            Label::Long(from, to) => &long[*from as usize..*to as usize],
        }
    }
}

impl<T> Tree<T> {
    /// Packs a plan: each way down stands in one piece.
    fn of(plan: Plan<T>) -> Self {
        let mut tree =
            Tree { nodes: Vec::new(), leaves: Vec::new(), edges: Edges::default(), labels: Vec::new() };
        let mut forks: Vec<Option<Fork<T>>> = plan.nodes.into_iter().map(Some).collect();
        let mut edges = Vec::new();
        // What is to be packed: the way there, where it begins, and its first segment.
        let mut todo = vec![(String::new(), 0, NONE)];
        while let Some((mut label, mut at, from)) = todo.pop() {
            let first = label.len();
            while from != NONE
                && let Some((segment, child)) = forks[at].as_ref().and_then(Fork::only)
            {
                label.push('/');
                label.push_str(segment);
                at = child;
            }
            let Some(fork) = forks[at].take() else { continue };
            let number = tree.nodes.len() as u32;
            match &label[..first] {
                _ if from == NONE => {}
                PARAM => tree.nodes[from as usize].param = number,
                segment => {
                    tree.nodes[from as usize].forks = true;
                    edges.push((from, segment.to_owned(), number));
                }
            }
            let mut here = fork.here.into_iter();
            let node = Node {
                label: Label::of(&label, &mut tree.labels),
                from,
                forks: false,
                param: NONE,
                first: here.next(),
                here: tree.keep(here),
                rest: tree.keep(fork.rest),
            };
            tree.nodes.push(node);
            todo.extend(fork.param.map(|child| (PARAM.to_owned(), child, number)));
            todo.extend(fork.fixed.into_iter().rev().map(|(name, child)| (name, child, number)));
        }
        tree.nodes.shrink_to_fit();
        tree.leaves.shrink_to_fit();
        tree.edges = Edges::of(&edges);
        tree
    }

    fn keep(&mut self, leaves: impl IntoIterator<Item = Leaf<T>>) -> (u32, u32) {
        let from = self.leaves.len() as u32;
        self.leaves.extend(leaves);
        (from, self.leaves.len() as u32)
    }

    fn leaves(&self, (from, to): (u32, u32)) -> &[Leaf<T>] {
        &self.leaves[from as usize..to as usize]
    }
}

/// All ways that begin with a static segment, by where they begin and that segment: a perfect hash (hash and displace). It
/// is small enough to stay near, and leads to one node, whose label says whether it is the one.
#[derive(Debug, Default)]
struct Edges {
    hashes: FixedState,
    /// What the hashes of a bucket are mixed with, so that each has a slot of its own.
    displacements: Vec<u32>,
    /// Nodes, or [`NONE`].
    slots: Vec<u32>,
}

impl Edges {
    /// Of these: where they begin, their first segments, and where they lead.
    fn of(edges: &[(u32, String, u32)]) -> Self {
        // Two may have the same hash; hardly ever by another seed too.
        (0..).find_map(|seed| Edges::placed(edges, FixedState::with_seed(seed))).unwrap_or_default()
    }

    fn placed(edges: &[(u32, String, u32)], hashes: FixedState) -> Option<Self> {
        let count = edges.len().div_ceil(4);
        let mut buckets: Vec<(usize, Vec<(u64, u32)>)> = (0..count).map(|at| (at, Vec::new())).collect();
        for (from, segment, child) in edges {
            let hash = hash_of(&hashes, *from, segment.as_bytes());
            buckets[bucket_of(hash, count)].1.push((hash, *child));
        }
        // The largest first, while there is room.
        buckets.sort_by_key(|(_, bucket)| std::cmp::Reverse(bucket.len()));
        let mut placed =
            Edges { hashes, displacements: vec![0; count], slots: vec![NONE; edges.len() + edges.len() / 4] };
        for (at, bucket) in buckets {
            placed.displacements[at] = (0..TRIES).find(|by| placed.place(&bucket, *by))?;
        }
        Some(placed)
    }

    /// Puts a bucket where this displacement leads it, if all of that is free.
    fn place(&mut self, bucket: &[(u64, u32)], by: u32) -> bool {
        for (done, (hash, child)) in bucket.iter().enumerate() {
            let slot = slot_of(*hash, by, self.slots.len());
            if self.slots[slot] != NONE {
                for (hash, _) in &bucket[..done] {
                    let slot = slot_of(*hash, by, self.slots.len());
                    self.slots[slot] = NONE;
                }
                return false;
            }
            self.slots[slot] = *child;
        }
        true
    }

    /// The only node that may be the child of a node by this segment.
    fn get(&self, from: u32, segment: &[u8]) -> Option<u32> {
        let hash = hash_of(&self.hashes, from, segment);
        let by = *self.displacements.get(bucket_of(hash, self.displacements.len()))?;
        let child = self.slots.get(slot_of(hash, by, self.slots.len())).copied();
        child.filter(|child| *child != NONE)
    }
}

/// Displacements that are tried before another seed is.
const TRIES: u32 = 1 << 20;

/// The seed may be known: callers only ask, what is put in is the operator's.
fn hash_of(hashes: &FixedState, from: u32, segment: &[u8]) -> u64 {
    let mut hasher = hashes.build_hasher();
    hasher.write_u32(from);
    hasher.write(segment);
    hasher.finish()
}

fn bucket_of(hash: u64, buckets: usize) -> usize {
    scaled(hash >> 32, buckets)
}

fn slot_of(hash: u64, by: u32, slots: usize) -> usize {
    let mixed =
        (hash ^ u64::from(by).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    scaled(mixed >> 32, slots)
}

/// A number of 32 bits as one below `to`.
fn scaled(number: u64, to: usize) -> usize {
    ((number * to as u64) >> 32) as usize
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
    fn node(&mut self, number: u32, at: usize) -> Step<'t, T> {
        let tree = self.tree;
        let node = &tree.nodes[number as usize];
        let path = self.asked.path;
        // Behind the last segment there is no slash left: the offset is one past the end.
        if at > path.len() || (at == path.len() && at == 1) {
            let step = self.leaves(node.first.iter().chain(tree.leaves(node.here)));
            if at > path.len() || !matches!(step, Step::Go) {
                return step;
            }
        }
        if node.forks {
            let segment = &path.as_bytes()[at..end_of_segment(path, at)];
            if let Some(child) = tree.edges.get(number, segment)
                && tree.nodes[child as usize].from == number
            {
                match self.way(child, at) {
                    Step::Go => {}
                    done => return done,
                }
            }
        }
        if node.param != NONE {
            match self.way(node.param, at) {
                Step::Go => {}
                done => return done,
            }
        }
        if node.rest.0 < node.rest.1 {
            self.ranges.push((at as u32, path.len() as u32));
            match self.leaves(tree.leaves(node.rest).iter()) {
                Step::Go => {
                    self.ranges.pop();
                }
                done => return done,
            }
        }
        Step::Go
    }

    /// Searches on the way to a child, which begins at `at`.
    fn way(&mut self, child: u32, at: usize) -> Step<'t, T> {
        let known = self.ranges.len();
        let label = self.tree.nodes[child as usize].label.text(&self.tree.labels);
        let step = match self.follow(label, at) {
            Some(next) => self.node(child, next),
            None => Step::Go,
        };
        if matches!(step, Step::Go) {
            self.ranges.truncate(known);
        }
        step
    }

    /// Behind the slash after a label's segments, if the path goes on with them at `at`.
    fn follow(&mut self, label: &[u8], mut at: usize) -> Option<usize> {
        let path = self.asked.path;
        let mut pieces = label.split(|byte| *byte == PARAM.as_bytes()[0]);
        let mut piece = pieces.next()?;
        loop {
            at = path.as_bytes()[at..].starts_with(piece).then_some(at + piece.len())?;
            let Some(next) = pieces.next() else { break };
            let end = end_of_segment(path, at);
            if end == at {
                return None;
            }
            self.ranges.push((at as u32, end as u32));
            (at, piece) = (end, next);
        }
        (at == path.len() || path.as_bytes()[at] == b'/').then_some(at + 1)
    }

    fn leaves(&mut self, leaves: impl Iterator<Item = &'t Leaf<T>> + Clone) -> Step<'t, T>
    where
        T: 't,
    {
        let asked = Methods::asked(self.asked.method);
        let holds = |leaf: &&'t Leaf<T>| {
            let wanted = leaf.predicates.as_ref();
            wanted.is_none_or(|wanted| wanted.hold(self.asked.headers, self.asked.query))
        };
        let found = match asked {
            // HEAD follows GET: whoever answers that one, unless a route is for HEAD itself.
            Methods::HEAD => {
                let own = leaves.clone().find(|leaf| leaf.takes == Methods::HEAD && holds(leaf));
                own.or_else(|| leaves.clone().find(|leaf| leaf.takes.has(Methods::GET) && holds(leaf)))
            }
            _ => leaves.clone().find(|leaf| leaf.takes.has(asked) && holds(leaf)),
        };
        if let Some(leaf) = found {
            return Step::Found(&leaf.value);
        }
        let mut native = false;
        for leaf in leaves.filter(holds) {
            self.allowed.add(leaf.takes);
            native |= leaf.native;
        }
        if native { Step::Stop } else { Step::Go }
    }
}

fn end_of_segment(path: &str, at: usize) -> usize {
    path[at..].find('/').map_or(path.len(), |length| at + length)
}

/// Methods, one a bit. The highest stands for all that no manifest can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Methods(u8);

impl Methods {
    const GET: Methods = Methods(1);
    const HEAD: Methods = Methods(1 << 1);
    const OTHER: Methods = Methods(1 << 7);
    const ANY: Methods = Methods(u8::MAX);

    /// Those that a route takes.
    fn of(declared: &MethodSet) -> Self {
        match declared {
            MethodSet::Any => Methods::ANY,
            MethodSet::One(method) => Methods::asked(method),
        }
    }

    /// That of a request.
    fn asked(method: &Method) -> Self {
        match *method {
            Method::GET => Methods::GET,
            Method::HEAD => Methods::HEAD,
            Method::POST => Methods(1 << 2),
            Method::PUT => Methods(1 << 3),
            Method::PATCH => Methods(1 << 4),
            Method::DELETE => Methods(1 << 5),
            Method::OPTIONS => Methods(1 << 6),
            _ => Methods::OTHER,
        }
    }

    fn has(self, one: Methods) -> bool {
        self.0 & one.0 != 0
    }

    /// How it is declared.
    fn name(self) -> &'static str {
        match self.0 {
            0b000_0001 => "GET",
            0b000_0010 => "HEAD",
            0b000_0100 => "POST",
            0b000_1000 => "PUT",
            0b001_0000 => "PATCH",
            0b010_0000 => "DELETE",
            0b100_0000 => "OPTIONS",
            _ => "ANY",
        }
    }
}

/// Methods that would have been taken.
#[derive(Debug, Default)]
struct Allowed(Vec<&'static str>);

impl Allowed {
    fn add(&mut self, methods: Methods) {
        let mut push = |name: &'static str| {
            if !self.0.contains(&name) {
                self.0.push(name);
            }
        };
        push(methods.name());
        if methods == Methods::GET {
            push("HEAD");
        }
    }

    fn answer<'t, T>(mut self) -> Found<'t, T> {
        if self.0.is_empty() {
            return Found::Nothing;
        }
        if !self.0.contains(&"OPTIONS") {
            self.0.push("OPTIONS");
        }
        HeaderValue::from_str(&self.0.join(", ")).map_or(Found::Nothing, Found::NotAllowed)
    }
}

#[cfg(test)]
mod tests;
