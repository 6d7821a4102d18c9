//! The catalogues of codes: what callers may be told ([`Kind`]), and what operators may be told of a manifest
//! ([`CATALOG`]). As pages of the documentation, and as Markdown for `docs/`.

use crate::contract::changelog::Changelog;
use crate::diag::CATALOG;
use crate::error::{Kind, Lang};
use std::fmt::Write as _;

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
        let (code, status) = (kind.code(), kind.status().as_u16());
        let (en, zh) = (escape(kind.text(Lang::En)), escape(kind.text(Lang::Zh)));
        let (cause, cure) = (marked(kind.cause()), marked(kind.cure()));
        let _ = write!(
            list,
            "<article id=\"{code}\"><h2><a href=\"#{code}\">{code}</a> <span class=\"status\">{status}</span></h2>\
             <p class=\"said\">{en} <span lang=\"zh\">{zh}</span></p><dl><dt>Cause</dt><dd>{cause}</dd><dt>Cure</dt><dd>{cure}</dd></dl></article>"
        );
    }
    page(
        "Error codes",
        "Every error that the gateway itself makes is <code>application/problem+json</code> (RFC 9457) with one of these \
         <code>code</code>s. They are stable; the texts are not.",
        &list,
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
        for kind in Kind::ALL {
            for text in [kind.cause(), kind.cure()] {
                assert!(text.len() > 10 && text.ends_with('.'), "{}: {text:?}", kind.code());
                assert!(!text.contains("SECURITY"), "{}: readers have no such file", kind.code());
            }
        }
    }

    #[test]
    fn texts_are_inert() {
        assert_eq!(marked("a `<b>` & {x}"), "a <code>&lt;b&gt;</code> &amp; &#123;x&#125;");
        let page = errors_page();
        assert!(page.contains("id=\"rate_limited\"") && !page.contains("{list}"));
        assert!(diagnostics_page().contains("id=\"VG031\""));
    }
}
