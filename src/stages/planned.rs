//! Stages that are known but not built yet.
//!
//! Their bodies are typed and documented here, so that editors complete them and mistakes in them show today;
//! [`StageDecl::PLANNED`] makes every use of one a fault, never silence. A stage that gets built moves to a file of
//! its own.

use super::caller::Callers;
use super::{Body, Stage, StageCx, StageDecl};
use crate::diag::milestone::UPSTREAMS;
use crate::manifest::List;
use crate::units::{Dur, Size};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Answers GET from memory while a copy is fresh (RFC 9111).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// How long a copy is fresh.
    pub ttl: Dur,
    /// What makes copies different beside the path, as in `rate_limit` (default: the whole query).
    #[serde(default)]
    pub by: List<String>,
    /// How long a copy may be given out while a new one is fetched (default: not at all).
    pub stale_while_revalidate: Option<Dur>,
    /// Answers larger than this are not kept (default `1MiB`).
    pub max_size: Option<Size>,
}

/// Declares a stage that is checked and never runs.
macro_rules! planned {
    ($($type:ident = $name:literal, $about:literal, $body:expr, $with:ident, $check:expr;)*) => {
        $(impl StageDecl for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = $about;
            const BODY: Body = $body;
            const PLANNED: Option<&'static str> = Some($with);

            fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
                let check: fn(Self, &mut StageCx<'_>) = $check;
                check(self, cx);
                None
            }
        })*
    };
}

planned! {
    Cache = "cache", "Answers GET from memory while a copy is fresh", Body::Bare("ttl"), UPSTREAMS,
        |body, cx| drop(Callers::check(&body.by, cx.out));
}

#[cfg(test)]
mod tests {
    use super::super::STAGES;
    use super::super::testing::check;

    /// Every fault beside that of not being there.
    fn others(stage: &str) -> Vec<String> {
        let checked = check(stage, "");
        assert!(checked.stage.is_none(), "{stage}");
        let (missing, others): (Vec<_>, Vec<_>) =
            checked.faults.into_iter().partition(|fault| fault.contains("VG020"));
        assert_eq!(missing.len(), 1, "{stage}: {missing:?}");
        others
    }

    #[test]
    fn the_contract_is_understood_and_refused() {
        let sound = "cache: { ttl: 30s, by: [query.q, user], stale_while_revalidate: 60s }";
        assert_eq!(others(sound), Vec::<String>::new());
        assert_eq!(
            check("cache: 30s", "").faults,
            [
                "s:1:1 VG020 stage `cache` is not available yet [it comes with *Upstreams that fail, and nobody notices*; remove it until then]"
            ]
        );
    }

    #[test]
    fn mistakes_in_them_show() {
        for (faulty, count) in [("cache: { tll: 30s }", 2), ("cache: { ttl: 30s, by: [phone, header.] }", 2)]
        {
            let found = others(faulty);
            assert_eq!(found.len(), count, "{faulty}: {found:#?}");
        }
    }

    #[test]
    fn names_are_unique_and_schemas_stand() {
        let mut names: Vec<_> = STAGES.iter().map(|kind| kind.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        let mut generator = schemars::SchemaGenerator::default();
        for kind in STAGES {
            assert!(kind.schema(&mut generator).as_object().is_some(), "{}", kind.name);
        }
    }
}
