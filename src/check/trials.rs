//! The tests of a manifest: requests, and what must become of them. They run offline, as `voicegate explain` does, when
//! everything else is sound; a test that fails refuses the manifest.
//!
//! What a stage cannot know offline (whether a token is good, whether a limit is reached) it lets pass. Where neither a
//! status nor a stage is expected, the request must reach where the route ends. What an upstream or a native operation
//! would answer nobody knows offline: to expect its status is a fault.

use super::routes::{CheckedRoute, Ending};
use super::walk::{Course, Imagined, Taken, Walks};
use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::model::{Route, RouteTest};
use crate::manifest::{Manifest, Spanned};
use crate::path::normalise_path;
use crate::stages::{self, STAGES};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::sync::Arc;

/// A test, and the place of the route it stands on.
type Placed<'m> = (&'m Spanned<RouteTest>, Option<Span>);

/// Every test of a manifest.
pub(super) fn all(manifest: &Manifest) -> impl Iterator<Item = Placed<'_>> {
    let at_top = manifest.tests.iter().map(|test| (test, None));
    let of_versions = manifest.versions.iter().flat_map(|version| {
        version.tests.0.iter().map(|test| (test, None)).chain(version.routes.0.iter().flat_map(of_route))
    });
    at_top.chain(of_versions).chain(manifest.routes.iter().flat_map(of_route))
}

fn of_route(route: &Spanned<Route>) -> impl Iterator<Item = Placed<'_>> {
    route.tests.0.iter().map(|test| (test, Some(route.route.span)))
}

/// Runs every test against routes that are sound.
pub(super) fn run(manifest: &Manifest, routes: &[Arc<CheckedRoute>], out: &mut Diagnostics) {
    let mut walks = None;
    for (test, on) in all(manifest) {
        let Some(request) = imagined(test, manifest, out) else { continue };
        if !names_known(test, routes, out) {
            continue;
        }
        let walks = walks.get_or_insert_with(|| Walks::of(routes));
        match request {
            Ok(request) => {
                let role = test.role.as_ref().map(|role| role.value.as_str());
                judge(test, on, &walks.walk(&request, role), out);
            }
            Err(refused) => refused_path(test, &refused, out),
        }
    }
}

/// The request of a test; the inner error is a path that the gateway refuses.
fn imagined(
    test: &RouteTest,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Result<Imagined, String>> {
    let before = out.counts().0;
    let mut bad = |span: Span, message: String, help: &str| {
        out.push(Diagnostic::error(Code::BAD_TEST, span, message).help(help));
    };
    let parts = test.request.split_once(' ').map(|(method, target)| (method, target.trim()));
    let parsed = parts.filter(|(_, target)| target.starts_with('/'));
    let method = parsed.and_then(|(method, _)| Method::from_bytes(method.as_bytes()).ok());
    if method.is_none() {
        bad(
            test.request.span,
            "this is not a request".to_owned(),
            "write `METHOD /path`, with its query if it has one",
        );
    }
    let mut headers = HeaderMap::new();
    for (key, value) in &test.headers.0 {
        match (HeaderName::from_bytes(key.text.as_bytes()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => {
                headers.append(name, value);
            }
            _ => bad(
                key.span,
                format!("`{}` is not a header that can be sent", key.text),
                "write `Name: value`",
            ),
        }
    }
    let expect = &test.expect;
    if expect.status.is_none() && expect.route.is_none() && expect.stage.is_none() {
        bad(
            test.expect.span,
            "this test expects nothing".to_owned(),
            "say the `route`, the `stage` or the `status`",
        );
    }
    if let Some(role) = test.role.as_ref().filter(|role| manifest.roles.get(&role.value).is_none()) {
        out.push(
            Diagnostic::error(Code::UNKNOWN_ROLE, role.span, format!("role `{}` is not defined", role.value))
                .maybe_help(did_you_mean(&role.value, manifest.roles.names())),
        );
    }
    if out.counts().0 > before {
        return None;
    }
    let (method, (_, target)) = (method?, parsed?);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let path = match normalise_path(path) {
        Ok(path) => path.into_owned(),
        Err(fault) => return Some(Err(fault.to_string().trim_end_matches('.').to_owned())),
    };
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
    Some(Ok(Imagined { method, path, query, headers, host }))
}

/// Whether what a test names is there at all.
fn names_known(test: &RouteTest, routes: &[Arc<CheckedRoute>], out: &mut Diagnostics) -> bool {
    let before = out.counts().0;
    if let Some(stage) = test.expect.stage.as_ref().filter(|stage| stages::find(stage).is_none()) {
        out.push(
            Diagnostic::error(
                Code::UNKNOWN_STAGE,
                stage.span,
                format!("stage `{}` is not known", stage.value),
            )
            .maybe_help(did_you_mean(stage, STAGES.iter().map(|kind| kind.name))),
        );
    }
    if let Some(route) = &test.expect.route
        && !routes.iter().any(|known| is_named(known, route))
    {
        let labels: Vec<String> = routes.iter().map(|known| known.label()).collect();
        let near = did_you_mean(route, labels.iter().map(String::as_str));
        let help = near.unwrap_or_else(|| {
            "routes are named as `voicegate routes` shows them, with their version's prefix".to_owned()
        });
        out.push(
            Diagnostic::error(Code::BAD_TEST, route.span, format!("there is no route `{}`", route.value))
                .help(help),
        );
    }
    out.counts().0 == before
}

/// Whether a text names a route: `METHOD /pattern`, with its host or without.
fn is_named(route: &CheckedRoute, text: &str) -> bool {
    let bare = text
        .split_once(' ')
        .is_some_and(|(method, path)| method == route.info.method && path.trim() == route.info.template);
    bare || route.label() == text
}

/// A path that never comes to a route.
fn refused_path(test: &RouteTest, fault: &str, out: &mut Diagnostics) {
    let expect = &test.expect;
    let fits = expect.status.as_ref().is_some_and(|status| status.value == 400);
    if !fits || expect.route.is_some() || expect.stage.is_some() {
        fails(test.request.span, &wanted(test), "the gateway refuses the path (400)", fault, None, out);
    }
}

/// Compares what would become of a request with what must.
fn judge(test: &Spanned<RouteTest>, on: Option<Span>, course: &Course<'_>, out: &mut Diagnostics) {
    let expect = &test.expect;
    let taken = match course {
        Course::Taken(taken) => taken,
        Course::NotAllowed(allow) => {
            let serves = allow.to_str().unwrap_or_default();
            return nowhere(test, 405, &format!("the path serves only {serves} (405)"), out);
        }
        Course::Nothing => return nowhere(test, 404, "no route takes it (404)", out),
    };
    let label = taken.route.label();
    let place = Some((taken.route.span, "this route takes it"));
    if let Some(route) = expect.route.as_ref().filter(|route| !is_named(taken.route, route)) {
        return fails(
            route.span,
            &format!("`{}`", route.value),
            &format!("`{label}` takes it"),
            "",
            place,
            out,
        );
    }
    if let Some(own) = on.filter(|own| expect.route.is_none() && *own != taken.route.span) {
        let message = format!("`{label}` takes it");
        return fails(
            test.request.span,
            "the route it stands on",
            &message,
            "",
            Some((own, "the test stands on this route")),
            out,
        );
    }
    let (by, status, why) = match taken.stopped() {
        Some((stage, status, why)) => (Some(stage), Some(status), why.to_owned()),
        None => (None, taken.answered(), String::new()),
    };
    let would = match (by, status) {
        (Some(stage), Some(status)) => format!("`{stage}` would answer {status}"),
        (_, Some(status)) if taken.is_closed() => {
            format!("the route is switched off and would answer {status}")
        }
        (_, Some(status)) => format!("it would pass every stage and be answered {status}"),
        _ => format!("it would pass every stage and reach {}", ending(taken)),
    };
    let span = expect.stage.as_ref().map(|stage| stage.span);
    let span = span.or(expect.status.as_ref().map(|status| status.span)).unwrap_or(test.request.span);
    match (&expect.stage, &expect.status) {
        (Some(stage), _) if by != Some(stage.value.as_str()) => {
            fails(span, &wanted(test), &would, &why, place, out)
        }
        (_, Some(expected)) => match status {
            Some(status) if status == expected.value => {}
            Some(_) => fails(expected.span, &wanted(test), &would, &why, place, out),
            None => out.push(
                Diagnostic::error(
                    Code::BAD_TEST,
                    expected.span,
                    format!("{would}, whose status nobody knows offline"),
                )
                .help("expect the `route` alone: then the request must reach where it ends")
                .note(taken.route.span, "this route takes it"),
            ),
        },
        (None, None) if by.is_some() || taken.is_closed() => {
            fails(span, &wanted(test), &would, &why, place, out)
        }
        _ => {}
    }
}

/// A request that no route takes.
fn nowhere(test: &RouteTest, status: u16, would: &str, out: &mut Diagnostics) {
    let expect = &test.expect;
    let fits = expect.status.as_ref().is_some_and(|expected| expected.value == status);
    if !fits || expect.route.is_some() || expect.stage.is_some() {
        fails(test.request.span, &wanted(test), would, "", None, out);
    }
}

/// What is expected, in words.
fn wanted(test: &RouteTest) -> String {
    let expect = &test.expect;
    match (&expect.status, &expect.stage, &expect.route) {
        (Some(status), Some(stage), _) => format!("{} from `{}`", status.value, stage.value),
        (Some(status), None, _) => format!("{}", status.value),
        (None, Some(stage), _) => format!("an answer from `{}`", stage.value),
        (None, None, Some(route)) => format!("that it reaches the end of `{}`", route.value),
        (None, None, None) => "nothing".to_owned(),
    }
}

/// Where a route ends, in words.
fn ending(taken: &Taken<'_>) -> String {
    match &taken.route.ending {
        Ending::Native(native) => format!("`{}`", native.operation.name),
        Ending::Target(_) => "its upstream".to_owned(),
    }
}

fn fails(
    span: Span,
    wanted: &str,
    would: &str,
    why: &str,
    place: Option<(Span, &str)>,
    out: &mut Diagnostics,
) {
    let mut fault = Diagnostic::error(
        Code::TEST_FAILS,
        span,
        format!("this test fails: it expects {wanted}, and {would}"),
    );
    fault = match why {
        "" => fault.help("`voicegate explain` shows every stage; mend the route, or what the test expects"),
        why => fault.help(format!("{why}; `voicegate explain` shows every stage")),
    };
    out.push(match place {
        Some((span, text)) => fault.note(span, text),
        None => fault,
    });
}
