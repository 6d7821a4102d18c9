//! The catalogues of codes: what callers may be told ([`Kind`]), and what operators may be told of a manifest
//! ([`CATALOG`]). As pages of the documentation, and as Markdown for `docs/`.

use crate::contract::changelog::Changelog;
use crate::diag::CATALOG;
use crate::error::{FURTHER, Further, Kind, Lang};
use std::fmt::Write as _;

/// Heading of the codes that are no refusals of the gateway's own.
const BEYOND: &str = "Calls and streams that fail";
/// What is said of them.
const BEYOND_LEAD: &str = "A gRPC service's failure has the service's own reason as its `code` where it gives one, else one of these. \
    Streams that end early say one of these in an event `error`.";

/// Error codes as Markdown.
pub fn errors_markdown() -> String {
    let mut text = "# Error codes\n\n\
        Every error that the gateway itself makes is `application/problem+json` (RFC 9457) with one of these `code`s; they are\n\
        stable, the texts are not. Written by `scripts/generate` from `src/error.rs`.\n"
        .to_owned();
    for kind in Kind::ALL {
        let (code, status) = (kind.code(), kind.status().as_u16());
        let (en, zh) = (kind.text(Lang::En), kind.text(Lang::Zh));
        let _ = write!(
            text,
            "\n## {code}\n\n**{status}** {en} · {zh}\n\n- Cause: {}\n- Cure: {}\n",
            kind.cause(),
            kind.cure()
        );
    }
    text.push_str(&format!("\n# {BEYOND}\n\n{BEYOND_LEAD}\n"));
    for Further { code, place, en, zh, cause, cure } in FURTHER {
        let _ = write!(text, "\n## {code}\n\n**{place}** {en} · {zh}\n\n- Cause: {cause}\n- Cure: {cure}\n");
    }
    text
}

/// Diagnostic codes as Markdown.
pub fn diagnostics_markdown() -> String {
    let mut text = "# Diagnostic codes\n\n\
        What `voicegate check` and a reload may find in a manifest; `voicegate explain VG031` says it in a shell. Written by\n\
        `scripts/generate` from `src/diag/codes.rs`.\n"
        .to_owned();
    for info in CATALOG {
        let _ = write!(text, "\n## {}\n\n**{}**\n\n{}\n", info.code, info.title, info.why);
    }
    text
}

/// Error codes as a page.
pub(super) fn errors_page() -> String {
    let mut list = String::new();
    for kind in Kind::ALL {
        let (status, en, zh) = (kind.status().as_u16(), kind.text(Lang::En), kind.text(Lang::Zh));
        list.push_str(&entry(kind.code(), &status.to_string(), [en, zh, kind.cause(), kind.cure()]));
    }
    let _ = write!(list, "<h1>{BEYOND}</h1><p>{}</p>", marked(BEYOND_LEAD));
    for Further { code, place, en, zh, cause, cure } in FURTHER {
        list.push_str(&entry(code, place, [en, zh, cause, cure]));
    }
    page(
        "Error codes",
        "Every error that the gateway itself makes is <code>application/problem+json</code> (RFC 9457) with one of these \
         <code>code</code>s. They are stable; the texts are not.",
        &list,
    )
}

/// One code of the page, with its texts in both languages, its cause and its cure.
fn entry(code: &str, place: &str, [en, zh, cause, cure]: [&str; 4]) -> String {
    let (en, zh, cause, cure) = (escape(en), escape(zh), marked(cause), marked(cure));
    format!(
        "<article id=\"{code}\"><h2><a href=\"#{code}\">{code}</a> <span class=\"status\">{place}</span></h2>\
         <p class=\"said\">{en} <span lang=\"zh\">{zh}</span></p><dl><dt>Cause</dt><dd>{cause}</dd><dt>Cure</dt><dd>{cure}</dd></dl></article>"
    )
}

/// Diagnostic codes as a page.
pub(super) fn diagnostics_page() -> String {
    let mut list = String::new();
    for info in CATALOG {
        let (code, title, why) = (info.code, marked(info.title), marked(info.why));
        let _ = write!(
            list,
            "<article id=\"{code}\"><h2><a href=\"#{code}\">{code}</a></h2><p class=\"said\">{title}</p><p>{why}</p></article>"
        );
    }
    page(
        "Diagnostic codes",
        "What <code>voicegate check</code> and a reload may find in a manifest; <code>voicegate explain VG031</code> says it in a shell.",
        &list,
    )
}

/// What callers saw change between revisions, as a page.
pub(super) fn changelog_page(changelog: &Changelog) -> String {
    page(
        "Changes",
        "What callers saw change between the revisions that this gateway served since it started, newest first; also \
         <a href=\"changelog.json\">as JSON</a>.",
        &changelog.html(),
    )
}

fn page(title: &str, lead: &str, list: &str) -> String {
    include_str!("../../../assets/docs/catalogue.html")
        .replace("{title}", title)
        .replace("{lead}", lead)
        .replace("{list}", list)
}

/// Text as HTML, what stands in backquotes as code.
fn marked(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| match index % 2 {
        0 => escape(part),
        _ => format!("<code>{}</code>", escape(part)),
    });
    parts.collect()
}

/// Text as HTML, in an attribute too. Braces are marks of the pages' templates.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '{' => safe.push_str("&#123;"),
            '}' => safe.push_str("&#125;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_what_brought_it_and_what_helps() {
        let refusals = Kind::ALL.iter().map(|kind| (kind.code(), kind.cause(), kind.cure()));
        let others = FURTHER.iter().map(|further| (further.code, further.cause, further.cure));
        for (code, cause, cure) in refusals.chain(others) {
            for text in [cause, cure] {
                assert!(text.len() > 10 && text.ends_with('.'), "{code}: {text:?}");
                assert!(!text.contains("SECURITY"), "{code}: readers have no such file");
            }
        }
    }

    #[test]
    fn texts_are_inert() {
        assert_eq!(marked("a `<b>` & {x}"), "a <code>&lt;b&gt;</code> &amp; &#123;x&#125;");
        let page = errors_page();
        assert!(
            page.contains("id=\"rate_limited\"")
                && page.contains("id=\"stream_idle\"")
                && !page.contains("{list}")
        );
        assert!(diagnostics_page().contains("id=\"VG031\""));
    }
}
