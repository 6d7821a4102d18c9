//! `voicegate explain METHOD PATH`: which route, each stage's verdict, the upstream's URL; offline.

use super::{ConfigArg, FINDINGS, OK, USAGE, print, say, sound};
use crate::check::Checked;
use crate::check::routes::{CheckedRoute, Ending};
use crate::compile::place_of;
use crate::compile::router::{Asked, Found, Router};
use crate::compile::{asked_about, sees_closed, sees_options};
use crate::path::normalise_path;
use crate::stages::{Probe, Verdict};
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::fmt::Write as _;
use std::sync::Arc;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Method of the request
    method: String,
    /// Path of the request, with its query
    path: String,
    /// Role of the caller [default: nobody]
    #[arg(long = "as", value_name = "ROLE")]
    role: Option<String>,
    /// A header of the request
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(command: &Explain) -> u8 {
    let request = match request_of(command) {
        Ok(request) => request,
        Err(message) => {
            say(&format!("error: {message}"));
            return USAGE;
        }
    };
    match sound(&command.config.config) {
        Ok(checked) => {
            let (text, found) = explain(&checked, &request, command.role.as_deref());
            print(&text);
            if found { OK } else { FINDINGS }
        }
        Err(code) => code,
    }
}

struct Request {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    host: String,
}

fn request_of(command: &Explain) -> Result<Request, String> {
    let method = Method::from_bytes(command.method.to_ascii_uppercase().as_bytes())
        .map_err(|_| format!("`{}` is not a method", command.method))?;
    let (path, query) = match command.path.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (command.path.as_str(), None),
    };
    let path = normalise_path(path).map_err(|fault| format!("the gateway refuses this path: {fault}"))?;
    let mut headers = HeaderMap::new();
    for header in &command.headers {
        let (name, value) = header.split_once(':').ok_or_else(|| format!("`{header}` is not NAME:VALUE"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| format!("`{name}` is not a header"))?;
        let value =
            HeaderValue::from_str(value.trim()).map_err(|_| format!("`{header}` has an impossible value"))?;
        headers.append(name, value);
    }
    let host = headers.get("host").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
    Ok(Request { method, path: path.into_owned(), query, headers, host })
}

/// What would happen, and whether some route takes it.
fn explain(checked: &Checked, request: &Request, role: Option<&str>) -> (String, bool) {
    let mut router: Router<Arc<CheckedRoute>> = Router::default();
    for route in checked.routes() {
        router.insert(&place_of(route), route.clone());
    }
    let asked = Asked {
        host: &request.host,
        method: &request.method,
        path: &request.path,
        headers: &request.headers,
        query: request.query.as_deref(),
    };
    let mut text = format!("{} {}\n", request.method, request.path);
    match router.find(&asked) {
        Found::Route(route, ranges) => {
            let params: Vec<&str> =
                ranges.iter().map(|(from, to)| &request.path[*from as usize..*to as usize]).collect();
            describe(&mut text, route, &params, request, role, None);
            (text, true)
        }
        Found::NotAllowed(allow) => {
            // As the table answers OPTIONS where the manifest has no route for it.
            let method = asked_about(&request.headers, &allow).filter(|_| request.method == Method::OPTIONS);
            if let Some(method) = method
                && let Found::Route(route, ranges) = router.find(&Asked { method: &method, ..asked })
            {
                let params: Vec<&str> =
                    ranges.iter().map(|(from, to)| &request.path[*from as usize..*to as usize]).collect();
                describe(&mut text, route, &params, request, role, allow.to_str().ok());
                return (text, true);
            }
            let allow = allow.to_str().unwrap_or_default();
            let _ = writeln!(text, "  405 method_not_allowed: the path serves {allow}");
            (text, false)
        }
        Found::Nothing => {
            let _ = writeln!(text, "  404 not_found: no route takes this");
            (text, false)
        }
    }
}

/// `options` is what the path serves, where the gateway answers OPTIONS in the route's stead.
fn describe(
    text: &mut String,
    route: &CheckedRoute,
    params: &[&str],
    request: &Request,
    role: Option<&str>,
    options: Option<&str>,
) {
    let version = route.info.version.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    let _ = writeln!(text, "  route   {}{version}", route.label());
    for (name, value) in route.info.params.iter().zip(params) {
        let _ = writeln!(text, "          {name} = {value}");
    }
    let probe = Probe { method: &request.method, path: &request.path, headers: &request.headers, role };
    // A socket is opened with GET, what it asks an operation for is a POST each.
    let turn = matches!(&route.ending, Ending::Native(native) if native.is_socket());
    let turn = Probe { method: if turn { &Method::POST } else { probe.method }, ..probe };
    let mut stopped = false;
    let closed = route.maintenance.as_ref().filter(|_| options.is_none());
    let links = route.links.iter().filter(|link| match (options, closed) {
        (Some(_), _) => sees_options(link.name),
        (None, Some(_)) => sees_closed(link.name),
        (None, None) => true,
    });
    for (index, link) in links.enumerate() {
        let lead = if index == 0 { "  chain " } else { "        " };
        let verdict = match (&link.stage, stopped) {
            (_, true) => "not reached".to_owned(),
            (None, _) => "not built".to_owned(),
            (Some(stage), _) => match stage.explain(if link.name == "rbac" { &turn } else { &probe }) {
                Verdict::Passes(remark) if remark.is_empty() => "passes".to_owned(),
                Verdict::Passes(remark) => format!("passes: {remark}"),
                Verdict::Refuses(status, why) => {
                    stopped = true;
                    format!("refuses with {status}: {why}")
                }
                Verdict::Answers(status, why) => {
                    stopped = true;
                    format!("answers {status}: {why}")
                }
            },
        };
        let _ = writeln!(text, "{lead}  {:<17} {verdict}", link.name);
    }
    let target = match (&route.ending, options, closed) {
        (_, Some(allow), _) => format!("answers 204 with Allow: {allow}"),
        (.., Some(closed)) => {
            let status = closed.reply.as_ref().map_or(503, |reply| reply.status.as_u16());
            format!(
                "switched off for maintenance: answers {status}; only stages that look on see the request"
            )
        }
        (Ending::Native(native), ..) => native.describe(&request.path),
        (Ending::Target(target), ..) => target.describe(&request.path, params),
    };
    let reached = if stopped { " (not reached)" } else { "" };
    let _ = writeln!(text, "  target  {target}{reached}");
}
