//! `voicegate explain METHOD PATH`: which route, each stage's verdict, the upstream's URL; offline.

use super::{ConfigArg, FINDINGS, OK, USAGE, print, say, sound};
use crate::check::Checked;
use crate::check::routes::Ending;
use crate::check::walk::{Course, Imagined as Request, Taken, Walks};
use crate::path::normalise_path;
use crate::stages::Verdict;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::fmt::Write as _;

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
    let mut text = format!("{} {}\n", request.method, request.path);
    let walks = Walks::of(checked.routes());
    match walks.walk(request, role) {
        Course::Taken(taken) => {
            describe(&mut text, &taken, request);
            (text, true)
        }
        Course::NotAllowed(allow) => {
            let allow = allow.to_str().unwrap_or_default();
            let _ = writeln!(text, "  405 method_not_allowed: the path serves {allow}");
            (text, false)
        }
        Course::Nothing => {
            let _ = writeln!(text, "  404 not_found: no route takes this");
            (text, false)
        }
    }
}

fn describe(text: &mut String, taken: &Taken<'_>, request: &Request) {
    let route = taken.route;
    let version = route.info.version.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    let _ = writeln!(text, "  route   {}{version}", route.label());
    for (name, value) in route.info.params.iter().zip(&taken.params) {
        let _ = writeln!(text, "          {name} = {value}");
    }
    for (index, (name, verdict)) in taken.steps.iter().enumerate() {
        let lead = if index == 0 { "  chain " } else { "        " };
        let verdict = match verdict {
            None => "not reached".to_owned(),
            Some(Verdict::Passes(remark)) if remark.is_empty() => "passes".to_owned(),
            Some(Verdict::Passes(remark)) => format!("passes: {remark}"),
            Some(Verdict::Refuses(status, why)) => format!("refuses with {status}: {why}"),
            Some(Verdict::Answers(status, why)) => format!("answers {status}: {why}"),
        };
        let _ = writeln!(text, "{lead}  {name:<17} {verdict}");
    }
    let target = match (&route.ending, &taken.options) {
        (_, Some(allow)) => format!("answers 204 with Allow: {}", allow.to_str().unwrap_or_default()),
        _ if taken.is_closed() => {
            let status = taken.answered().unwrap_or(503);
            format!(
                "switched off for maintenance: answers {status}; only stages that look on see the request"
            )
        }
        (Ending::Native(native), _) => native.describe(&request.path),
        (Ending::Target(target), _) => target.describe(&request.path, &taken.params),
    };
    let reached = if taken.stopped().is_some() { " (not reached)" } else { "" };
    let _ = writeln!(text, "  target  {target}{reached}");
}
