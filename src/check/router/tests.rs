use super::*;
use crate::check::pattern;
use crate::diag::{Diagnostics, FileId, Span};
use crate::manifest::Spanned;

fn table(routes: &[&str]) -> Router<String> {
    let mut places = Vec::new();
    for text in routes {
        let (route, host) = text.split_once(" @").map_or((*text, None), |(r, h)| (r, Some(h)));
        let (route, native) = route.strip_suffix(" !").map_or((route, false), |r| (r, true));
        let mut out = Diagnostics::new();
        let spanned =
            |text: &str| Spanned { value: text.to_owned(), span: Span::new(FileId(0), 0, text.len()) };
        let (method, pattern) = pattern::route(&spanned(route), "", &mut out).unwrap();
        let host = host.map(|h| pattern::host(&spanned(h), &mut out).unwrap());
        places.push((host, method, pattern, native, (*text).to_owned()));
    }
    let predicates = &Predicates::default();
    let places = places.iter().map(|(host, method, pattern, native, value): &(_, _, _, bool, String)| {
        let host = Option::as_ref(host);
        (Place { host, method, pattern, predicates, native: *native }, value.clone())
    });
    places.collect()
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
    let routes: Vec<String> = (0..1000).map(|i| format!("GET /r{i}/x")).collect();
    let router = table(&routes.iter().map(String::as_str).collect::<Vec<_>>());
    for route in &routes {
        assert_eq!(ask(&router, "h", "GET", &route[4..]), format!("{route} []"));
    }
    assert_eq!(ask(&router, "h", "GET", "/r1000/x"), "404");
    assert_eq!(ask(&router, "h", "GET", "/r57"), "404");
    assert_eq!(ask(&router, "h", "GET", "/r57/"), "404");
    assert_eq!(ask(&router, "h", "GET", "/r57/xx"), "404");
    assert_eq!(ask(&router, "h", "GET", "/r57/x/"), "404");
}

#[test]
fn labels_may_be_longer_than_a_node() {
    let long = format!("/{}/:id/{}", "a".repeat(40), "b".repeat(300));
    let other = format!("/{}/:id/c", "a".repeat(40));
    let (long, other) = (format!("GET {long}"), format!("GET {other}"));
    let router = table(&[&long, &other]);
    for route in [&long, &other] {
        assert_eq!(ask(&router, "h", "GET", &route[4..].replace(":id", "7")), format!("{route} [7]"));
        assert_eq!(ask(&router, "h", "GET", &route[4..].replace("/:id", "/")), "404", "no value");
    }
}

/// What a table does, said without a tree: all places that match, the more special first, in turn.
fn expected(routes: &[String], method: &str, path: &str) -> String {
    let segments: Vec<&str> = if path == "/" { vec![] } else { path[1..].split('/').collect() };
    let mut matching: Vec<(Vec<u8>, &String)> = Vec::new();
    for route in routes {
        let pattern = route.trim_end_matches(" !").split_once(' ').unwrap().1;
        let parts: Vec<&str> = if pattern == "/" { vec![] } else { pattern[1..].split('/').collect() };
        let kinds = parts.iter().map(|part| match part.as_bytes().first() {
            Some(b':') => 1,
            Some(b'*') => 2,
            _ => 0,
        });
        let fits = |(at, part): (usize, &&str)| match part.as_bytes().first() {
            Some(b':') => segments.get(at).is_some_and(|segment| !segment.is_empty()),
            Some(b'*') => at < segments.len() || (at == 0 && segments.is_empty()),
            _ => segments.get(at) == Some(part),
        };
        let open = parts.last().is_some_and(|part| part.starts_with('*'));
        if parts.iter().enumerate().all(fits) && (open || parts.len() == segments.len()) {
            matching.push((kinds.collect(), route));
        }
    }
    matching.sort_by(|a, b| a.0.cmp(&b.0));
    let mut allowed: Vec<&str> = Vec::new();
    for place in matching.chunk_by(|a, b| a.0 == b.0) {
        let named = |name: &str| place.iter().find(|(_, route)| route.starts_with(&format!("{name} ")));
        let found = match method {
            "HEAD" => named("HEAD").or_else(|| named("GET")).or_else(|| named("ANY")),
            _ => named(method).or_else(|| named("ANY")),
        };
        if let Some((_, route)) = found {
            return (*route).clone();
        }
        for (_, route) in place {
            let name = route.split_once(' ').unwrap().0;
            for name in [Some(name), (name == "GET").then_some("HEAD")].into_iter().flatten() {
                if !allowed.contains(&name) {
                    allowed.push(name);
                }
            }
        }
        if place.iter().any(|(_, route)| route.ends_with(" !")) {
            break;
        }
    }
    allowed.sort_unstable();
    if allowed.is_empty() { "404".to_owned() } else { format!("405 {}", allowed.join(" ")) }
}

proptest::proptest! {
    #[test]
    fn a_tree_finds_what_a_list_would(
        routes in proptest::collection::btree_map(
            "(GET|HEAD|POST|ANY) (/(a|b|ab|:)){0,4}(/|/\\*)?",
            proptest::bool::ANY,
            0..24,
        ),
        asked in proptest::collection::vec("(/(a|b|ab|c)){0,5}/?", 1..24),
    ) {
        let number = |text: &str| {
            let mut names = 0..;
            let named = text.chars().map(|sign| match sign {
                ':' | '*' => format!("{sign}p{}", names.next().unwrap()),
                sign => sign.to_string(),
            });
            named.collect::<String>()
        };
        let whole = |text: &str| if text.ends_with(' ') { format!("{text}/") } else { text.to_owned() };
        let routes: std::collections::BTreeSet<String> = routes
            .iter()
            .map(|(route, native)| number(&whole(route)) + if *native { " !" } else { "" })
            .collect();
        // One of a kind: that two places are not the same is proven before.
        let mut seen = std::collections::BTreeSet::new();
        let routes: Vec<String> =
            routes.into_iter().filter(|route| seen.insert(route.trim_end_matches(" !").to_owned())).collect();
        let router = table(&routes.iter().map(String::as_str).collect::<Vec<_>>());
        for path in &asked {
            let path = if path.is_empty() { "/" } else { path };
            for method in ["GET", "HEAD", "POST", "DELETE"] {
                let answer = ask(&router, "h", method, path);
                let answer = match answer.split_once(" [") {
                    Some((route, _)) => route.to_owned(),
                    None => match answer.strip_prefix("405 ") {
                        Some(list) => {
                            let mut list: Vec<&str> =
                                list.split(", ").filter(|name| *name != "OPTIONS").collect();
                            list.sort_unstable();
                            format!("405 {}", list.join(" "))
                        }
                        None => answer,
                    },
                };
                let wanted = expected(&routes, method, path);
                proptest::prop_assert_eq!(answer.trim_end_matches(" !"), wanted.trim_end_matches(" !"), "{} {}", method, path);
            }
        }
    }
}
