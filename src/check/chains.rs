//! Chains: names resolved, nested chains expanded, bodies decoded once.

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::model::{ChainRef, StageUse, With};
use crate::manifest::{Manifest, Node};
use crate::stages::{self, STAGES, Stage, StageCx};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// One stage of a resolved chain.
#[derive(Clone)]
pub struct Link {
    /// Its name.
    pub name: &'static str,
    /// Where it was written.
    pub span: Span,
    /// What it says, as written.
    pub body: Node,
    /// Hash of what it says and of what that refers to.
    pub fingerprint: u64,
    /// The checked stage; none if its body had faults.
    pub stage: Option<Arc<dyn Stage>>,
}

impl Link {
    /// Whether nobody passes it without saying who they are.
    pub fn refuses_strangers(&self) -> bool {
        let lets_pass = || {
            let stage = self.stage.as_ref();
            stage.is_some_and(|stage| stage.facts().lets_strangers_pass || stage.condition().is_some())
        };
        super::order::IDENTIFY.contains(&self.name) && !lets_pass()
    }
}

/// Resolves chains of one manifest; each named one once.
pub struct Chains<'a> {
    manifest: &'a Manifest,
    named: HashMap<String, Arc<[Link]>>,
    /// Chains being expanded, outermost first.
    open: Vec<String>,
    /// Chains that something refers to.
    pub used: HashSet<String>,
}

impl<'a> Chains<'a> {
    /// For a manifest.
    pub fn new(manifest: &'a Manifest) -> Self {
        Chains { manifest, named: HashMap::new(), open: Vec::new(), used: HashSet::new() }
    }

    /// The stages that a reference stands for.
    pub fn resolve(&mut self, chain: &ChainRef, out: &mut Diagnostics) -> Arc<[Link]> {
        match chain {
            ChainRef::Named(name) => self.by_name(&name.value, name.span, out),
            ChainRef::Inline(_, stages) => {
                let stages: Vec<_> = stages.0.iter().map(|stage| &stage.value).collect();
                self.expand(&stages, out).into()
            }
        }
    }

    /// A chain changed by a route's `with:`: a body replaced in place, or a stage added innermost. A stage that goes by
    /// who is calling with its new body, and not with its old one, moves to where that is known.
    pub fn change(&self, base: &Arc<[Link]>, with: &With, out: &mut Diagnostics) -> Arc<[Link]> {
        if with.0.is_empty() {
            return base.clone();
        }
        let mut links = base.to_vec();
        for change in &with.0 {
            let Some(link) = self.link(change, out) else { continue };
            let mut places = links.iter_mut().filter(|known| known.name == link.name);
            match (places.next(), places.next()) {
                (None, _) => links.push(link),
                (Some(place), None) => {
                    *place = link;
                    move_behind_identity(&mut links, change.name.text.as_str());
                }
                (Some(_), Some(second)) => {
                    let message = format!("stage `{}` stands more than once in this chain", link.name);
                    out.push(
                        Diagnostic::error(Code::STAGE_TWICE, change.name.span, message)
                            .help("which of them is meant is not clear: give the route a chain of its own")
                            .note(second.span, "a second one"),
                    );
                }
            }
        }
        links.into()
    }

    /// Resolves every chain, so that faults in unused ones show too.
    pub fn resolve_all(&mut self, out: &mut Diagnostics) {
        let used = self.used.clone();
        for (key, _) in &self.manifest.chains.0 {
            self.by_name(&key.text, key.span, out);
        }
        self.used = used;
    }

    fn by_name(&mut self, name: &str, span: Span, out: &mut Diagnostics) -> Arc<[Link]> {
        self.used.insert(name.to_owned());
        if let Some(links) = self.named.get(name) {
            return links.clone();
        }
        let Some(declared) = self.manifest.chains.get(name) else {
            out.push(
                Diagnostic::error(Code::UNKNOWN_CHAIN, span, format!("chain `{name}` is not defined"))
                    .maybe_help(did_you_mean(name, self.manifest.chains.names())),
            );
            return [].into();
        };
        if self.open.iter().any(|open| open == name) {
            let path = self.open.join("` → `");
            out.push(
                Diagnostic::error(
                    Code::CYCLE,
                    span,
                    format!("chain `{name}` contains itself: `{path}` → `{name}`"),
                )
                .help("take the stages out of the circle into a chain of their own"),
            );
            return [].into();
        }
        self.open.push(name.to_owned());
        let stages: Vec<_> = declared.0.iter().map(|stage| &stage.value).collect();
        let links: Arc<[Link]> = self.expand(&stages, out).into();
        self.open.pop();
        self.named.insert(name.to_owned(), links.clone());
        links
    }

    fn expand(&mut self, stages: &[&StageUse], out: &mut Diagnostics) -> Vec<Link> {
        let mut links = Vec::new();
        for stage in stages {
            if stage.name.text == "chain" {
                match stage.body.as_str() {
                    Some(name) => links.extend(self.by_name(name, stage.body.span, out).iter().cloned()),
                    None => out.push(
                        Diagnostic::error(
                            Code::BAD_VALUE,
                            stage.name.span,
                            "`chain` takes the name of a chain",
                        )
                        .help("write `- chain: public`"),
                    ),
                }
            } else {
                links.extend(self.link(stage, out));
            }
        }
        links
    }

    fn link(&self, stage: &StageUse, out: &mut Diagnostics) -> Option<Link> {
        let name = stage.name.text.as_str();
        let Some(kind) = stages::find(name) else {
            let known = STAGES.iter().map(|kind| kind.name).chain(["chain"]);
            out.push(
                Diagnostic::error(
                    Code::UNKNOWN_STAGE,
                    stage.name.span,
                    format!("stage `{name}` is not known"),
                )
                .maybe_help(did_you_mean(name, known)),
            );
            return None;
        };
        let mut cx =
            StageCx { manifest: self.manifest, span: stage.name.span, out, references: DefaultHasher::new() };
        let checked = kind.check(stage, &mut cx);
        let mut state = cx.references;
        kind.name.hash(&mut state);
        Some(Link {
            name: kind.name,
            span: stage.name.span,
            body: stage.body.clone(),
            fingerprint: state.finish(),
            stage: checked,
        })
    }
}

/// Moves the stage of this name behind the last that finds out who is calling, if it goes by that and stands before.
fn move_behind_identity(links: &mut [Link], name: &str) {
    let needs_identity =
        |link: &Link| link.stage.as_ref().is_some_and(|stage| stage.facts().needs_identity.is_some());
    let Some(at) = links.iter().position(|link| link.name == name && needs_identity(link)) else { return };
    let last = links.iter().rposition(|link| super::order::IDENTIFY.contains(&link.name));
    if let Some(last) = last.filter(|last| *last > at) {
        links[at..=last].rotate_left(1);
    }
}
