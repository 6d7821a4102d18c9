//! `voicegate explain METHOD PATH`: which route, each stage's verdict, the upstream's URL; offline. Or `explain VG031`: what
//! a code stands for.

use super::{ConfigArg, FINDINGS, OK, USAGE, print, say, sound};
use crate::check::Checked;
use crate::check::routes::Ending;
use crate::check::walk::{Course, Imagined as Request, Taken, Walks};
use crate::diag::{CATALOG, did_you_mean};
use crate::error::{FURTHER, Further, Kind, Lang, further};
use crate::path::normalise_path;
use crate::stages::Verdict;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::fmt::Write as _;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Method of the request; or a code, such as `VG031` of a diagnostic or `rate_limited` of an error
    #[arg(value_name = "METHOD|CODE")]
    subject: String,
    /// Path of the request, with its query
    path: Option<String>,
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
    let Some(path) = &command.path else {
        return code(&command.subject);
    };
    let request = match request_of(command, path) {
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

/// Says what a code stands for.
fn code(wanted: &str) -> u8 {
    let known = CATALOG.iter().find(|info| info.code.to_string().eq_ignore_ascii_case(wanted));
    if let Some(info) = known {
        print(&format!("{}: {}\n\n{}\n", info.code, info.title, info.why));
        return OK;
    }
    if let Some(kind) = Kind::ALL.iter().find(|kind| kind.code().eq_ignore_ascii_case(wanted)) {
        let (code, status) = (kind.code(), kind.status().as_u16());
        let (en, zh) = (kind.text(Lang::En), kind.text(Lang::Zh));
        print(&format!("{code} ({status}): {en} · {zh}\n\nCause: {}\nCure: {}\n", kind.cause(), kind.cure()));
        return OK;
    }
    if let Some(further) = further(&wanted.to_ascii_lowercase()) {
        let Further { code, place, en, zh, cause, cure } = further;
        print(&format!("{code} ({place}): {en} · {zh}\n\nCause: {cause}\nCure: {cure}\n"));
        return OK;
    }
    let numbers: Vec<String> = CATALOG.iter().map(|info| info.code.to_string()).collect();
    let upper = wanted.to_ascii_uppercase();
    let (near, list) = match upper.starts_with("VG") {
        true => (did_you_mean(&upper, numbers.iter().map(String::as_str)), "diagnostics"),
        false => {
            let further = FURTHER.iter().map(|further| further.code);
            (did_you_mean(wanted, Kind::ALL.iter().map(|kind| kind.code()).chain(further)), "errors")
        }
    };
    say(&format!("error: `{wanted}` is no code, and a request needs its path: `explain GET /path`"));
    let help =
        near.unwrap_or_else(|| format!("docs/{list}.md and /docs/{list} of a gateway list every code"));
    say(&format!("  help: {help}"));
    USAGE
}

fn request_of(command: &Explain, path: &str) -> Result<Request, String> {
    let method = Method::from_bytes(command.subject.to_ascii_uppercase().as_bytes())
        .map_err(|_| format!("`{}` is not a method", command.subject))?;
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (path, None),
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
